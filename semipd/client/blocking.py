"""Blocking client of the Unix socket, without threads: it reads while somebody waits for an answer.

Several generations and subscriptions may be under way on one connection. For one thread at a time.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from semipd.client import operations
from semipd.client.core import Answer, ClientCore, Question, as_method
from semipd.client.opening import (
    ANSWER_LIMIT_S,
    CONNECT_LIMIT_S,
    MAX_ATTEMPTS,
    READ_BYTES,
    RETRY_S,
    connect_now,
    is_late,
    no_hello,
    too_busy,
    unanswered,
)
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import Status
from semipd.system.readiness import any_readable
from semipd.wire.address import default_socket_path
from semipd.wire.client_protocol import GenerateItem, StateFrame
from semipd.wire.client_results import Greeting
from semipd.wire.load_frame import LoadFrame

SILENCE_LIMIT_S = 15.0
"""A daemon that has been silent for so long while a stream is read is asked whether it is there."""

P = ParamSpec("P")
T = TypeVar("T")


class _Iterator(Generic[T]):
    """Frames that answer one request. Leaving the context, or `close`, ends it without waiting for more."""

    _end: Callable[[int], Question[bool]]

    def __init__(self, client: "Client", question: Question[T]) -> None:
        self._client = client
        self._read = question.read
        self._over = False
        self.id = client._send(question.op, question.fields)

    def __iter__(self) -> Self:
        return self

    def close(self) -> None:
        if not self._over:
            self._is_over()
            if self._client._core.gone is None:
                self._client._ask(type(self)._end(self.id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> T:
        if self._over:
            raise StopIteration
        try:
            answer = self._client._answer(self.id)
        except SemipdError:
            self._is_over()
            raise
        return self._read(answer)

    def _is_over(self) -> None:
        self._over = True
        self._client._core.forget(self.id)


class GenerateIterator(_Iterator[GenerateItem]):
    """Items of one generation, of all its choices as they come. Iterate to the end, or `close` it to cancel
    what is left."""

    _end = staticmethod(operations.cancel)

    def __next__(self) -> GenerateItem:
        """The last item of each choice has a finish reason. Raises SemipdError when the request fails."""
        item = self._next()
        if item.is_last:
            self._is_over()
        return item

    def cancel(self) -> bool:
        """Ask for the end of all choices; iteration goes on to their last items, which say `cancelled`."""
        return self._client.cancel(self.id)


class StateIterator(_Iterator[StateFrame]):
    """Frames of one subscription. Iterate, then `close` it."""

    _end = staticmethod(operations.unsubscribe)

    def __next__(self) -> StateFrame:
        """Waits for a frame; of several that have come, one with the newest state and all events. Ends when
        the daemon ends the subscription."""
        frame = self._next()
        while (later := self._client._answer_if_here(self.id)) is not None:
            frame = frame.then(self._read(later))
        if frame.ended is not None:
            self._is_over()
            if not frame.state:
                raise StopIteration
        return frame


class LoadIterator(_Iterator[LoadFrame]):
    """Frames of a recording. `end` it and iterate to the last one, or `close` it and miss
    what still runs."""

    _end = staticmethod(operations.unsubscribe)

    def __next__(self) -> LoadFrame:
        """The last frame says why it `ended`."""
        frame = self._next()
        if frame.ended is not None:
            self._is_over()
        return frame

    def end(self) -> bool:
        """Iteration goes on to the last frame, with what still runs before it."""
        return self._client.unsubscribe(self.id)


Stream = TypeVar("Stream", GenerateIterator, StateIterator, LoadIterator)


def _asks(question: Callable[P, Question[T]]) -> Callable[Concatenate["Client", P], T]:
    def ask(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._ask(question(*args, **kwargs))

    return as_method(ask, question)


def _streams(
    question: Callable[P, Question[T]], stream: Callable[["Client", Question[T]], Stream]
) -> Callable[Concatenate["Client", P], Stream]:
    def begin(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Stream:
        return stream(client, question(*args, **kwargs))

    return as_method(begin, question)


class Client:
    """A connection. Create it with `connect`; use it as a context manager or `close` it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._core = ClientCore()

    @classmethod
    def connect(cls, path: Path | str | None = None) -> "Client":
        """Connect to the socket at `path` (default: where the daemon puts it).

        Raises SemipdError: as `connect_error` says, or what the daemon refuses the connection for.
        """
        path = path or default_socket_path()
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return cls._connect(path)
            except SemipdError as error:
                if not is_late(error):
                    raise
        return cls._connect(path)

    @classmethod
    def _connect(cls, path: Path | str) -> "Client":
        client = cls(_connected_socket(path))
        try:
            client._greet(path)
        except BaseException:
            client.close()
            raise
        return client

    @property
    def greeting(self) -> Greeting:
        """What the daemon says of itself: model, role, operations, limits."""
        return self._core.greeting

    generate = _streams(operations.generate, GenerateIterator)
    subscribe = _streams(operations.subscribe, StateIterator)
    record = _streams(operations.record, LoadIterator)
    unsubscribe = _asks(operations.unsubscribe)
    cancel = _asks(operations.cancel)
    cancel_request = _asks(operations.cancel_request)
    requests = _asks(operations.requests)
    tokenize = _asks(operations.tokenize)
    detokenize = _asks(operations.detokenize)
    models = _asks(operations.models)
    partition = _asks(operations.partition)
    set_partition = _asks(operations.set_partition)
    clear_partition = _asks(operations.clear_partition)
    slo = _asks(operations.slo)
    set_slo = _asks(operations.set_slo)
    drain = _asks(operations.drain)
    shutdown = _asks(operations.shutdown)

    def status(self) -> Status:
        """Numbers of daemon and engine. Written out: a type variable would lose part of the union."""
        return self._ask(operations.status())

    def close(self) -> None:
        """What is under way on this connection is cancelled by the daemon."""
        self._core.ended("This client has been closed.")
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greet(self, path: Path | str) -> None:
        try:
            while not self._core.is_greeted:
                self._read_once(CONNECT_LIMIT_S)
        except TimeoutError as error:
            raise no_hello(path) from error

    def _send(self, op: str, fields: Mapping[str, Any]) -> int:
        request_id, frame = self._core.request(op, fields)
        self._sock.settimeout(ANSWER_LIMIT_S)
        try:
            self._sock.sendall(frame)
        except TimeoutError as error:
            raise self._core.ended(f"The daemon took no request for {ANSWER_LIMIT_S:g} s.") from error
        except OSError as error:
            # The daemon may have said why before it closed.
            with suppress(SemipdError, OSError):
                while True:
                    self._read_once(ANSWER_LIMIT_S)
            raise self._core.ended("The daemon closed the connection.") from error
        return request_id

    def _ask(self, question: Question[T]) -> T:
        """A request with one answer."""
        request_id = self._send(question.op, question.fields)
        try:
            answer = self._answer(request_id, ANSWER_LIMIT_S)
        except TimeoutError as error:
            raise unanswered(question.op, ANSWER_LIMIT_S) from error
        finally:
            self._core.forget(request_id)
        return question.read(answer)

    def _answer(self, request_id: int, limit_s: float | None = None) -> Answer:
        """The next frame for this request. Raises TimeoutError when nothing at all comes for `limit_s`; None:
        a daemon that answers other questions may take its time."""
        while (answer := self._core.answer(request_id)) is None:
            try:
                self._read_once(limit_s or SILENCE_LIMIT_S)
            except TimeoutError:
                if limit_s is not None:
                    raise
                self._check_alive()
        return answer

    def _check_alive(self) -> None:
        """Raises SemipdError when the daemon does not answer any more; a refusal is an answer too."""
        try:
            self._ask(operations.status())
        except SemipdError as error:
            if error.code == "daemon_silent" or self._core.gone is not None:
                raise

    def _answer_if_here(self, request_id: int) -> Answer | None:
        """Likewise, if it has arrived already. What has gone wrong is for the next call of `_answer`."""
        with suppress(SemipdError):
            while self._core.gone is None and any_readable([self._sock.fileno()], 0):
                self._read_once(ANSWER_LIMIT_S)
        return self._core.answer(request_id) if self._core.has_answer(request_id) else None

    def _read_once(self, limit_s: float | None) -> None:
        """Wait for bytes. Raises TimeoutError, and SemipdError at the end of the connection."""
        self._sock.settimeout(limit_s)
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        except TimeoutError:
            if not any_readable([self._sock.fileno()], 0):
                raise
            data = self._sock.recv(READ_BYTES)  # it is here: we were the ones that slept
        self._core.feed(data)


def _connected_socket(path: Path | str) -> socket.socket:
    num_tries = round(CONNECT_LIMIT_S / RETRY_S)
    for _ in range(num_tries):
        if (sock := connect_now(path)) is not None:
            return sock
        time.sleep(RETRY_S)
    raise too_busy(path)
