"""Asyncio client of the Unix socket: many requests in flight on one connection."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
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
from semipd.wire.address import default_socket_path
from semipd.wire.client_protocol import GenerateItem, StateFrame
from semipd.wire.client_results import Greeting
from semipd.wire.load_frame import LoadFrame
from semipd.wire.own_time import OwnTime

P = ParamSpec("P")
T = TypeVar("T")


class _Stream(Generic[T]):
    """Frames that answer one request. Leaving the context, or `aclose`, ends it without waiting for more."""

    _end: Callable[[int], Question[bool]]

    def __init__(self, client: "AsyncClient", question: Question[T]) -> None:
        self._client = client
        self._read = question.read
        self._over = False
        self.id = client._send(question.op, question.fields)

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        if not self._over:
            self._is_over()
            if self._client._core.gone is None:
                await self._client._ask(type(self)._end(self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> T:
        if self._over:
            raise StopAsyncIteration
        try:
            answer = await self._client._answer(self.id)
        except SemipdError:
            self._is_over()
            raise
        return self._read(answer)

    def _is_over(self) -> None:
        self._over = True
        self._client._forget(self.id)


class GenerateStream(_Stream[GenerateItem]):
    """Items of one generation, of all its choices as they come. Iterate to the end, or `aclose` it to cancel
    what is left."""

    _end = staticmethod(operations.cancel)

    async def __anext__(self) -> GenerateItem:
        """The last item of each choice has a finish reason. Raises SemipdError when the request fails."""
        item = await self._next()
        if item.is_last:
            self._is_over()
        return item

    async def cancel(self) -> bool:
        """Ask for the end of all choices; iteration goes on to their last items, which say `cancelled`."""
        return await self._client.cancel(self.id)


class StateStream(_Stream[StateFrame]):
    """Frames of one subscription. Iterate, then `aclose` it."""

    _end = staticmethod(operations.unsubscribe)

    async def __anext__(self) -> StateFrame:
        """Ends when the daemon ends the subscription. Raises SemipdError when it is refused, or the
        connection is lost."""
        frame = await self._next()
        if frame.ended is not None:
            self._is_over()
            raise StopAsyncIteration
        return frame


class LoadStream(_Stream[LoadFrame]):
    """Frames of a recording. `end` it and iterate to the last one, or `aclose` it and miss
    what still runs."""

    _end = staticmethod(operations.unsubscribe)

    async def __anext__(self) -> LoadFrame:
        """The last frame says why it `ended`. Raises SemipdError when it is refused, or the connection is
        lost."""
        frame = await self._next()
        if frame.ended is not None:
            self._is_over()
        return frame

    async def end(self) -> bool:
        """Iteration goes on to the last frame, with what still runs before it."""
        return await self._client.unsubscribe(self.id)


Stream = TypeVar("Stream", GenerateStream, StateStream, LoadStream)


def _asks(
    question: Callable[P, Question[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def ask(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._ask(question(*args, **kwargs))

    return as_method(ask, question)


def _streams(
    question: Callable[P, Question[T]], stream: Callable[["AsyncClient", Question[T]], Stream]
) -> Callable[Concatenate["AsyncClient", P], Stream]:
    def begin(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Stream:
        return stream(client, question(*args, **kwargs))

    return as_method(begin, question)


class AsyncClient:
    """A connection. Create it with `connect`; use it as an async context manager or `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._core = ClientCore()
        self._arrived: dict[int, asyncio.Event] = {}
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: Path | str | None = None) -> "AsyncClient":
        """Connect to the socket at `path` (default: where the daemon puts it).

        Raises SemipdError: as `connect_error` says, or what the daemon refuses the connection for.
        """
        path = path or default_socket_path()
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return await cls._connect(path)
            except SemipdError as error:
                if not is_late(error):
                    raise
        return await cls._connect(path)

    @classmethod
    async def _connect(cls, path: Path | str) -> "AsyncClient":
        sock = await _connected_socket(path)
        client = cls(*await asyncio.open_unix_connection(sock=sock))
        try:
            await client._greet(path)
        except BaseException:
            await client.close()
            raise
        client._reading = asyncio.create_task(client._read(), name="semipd-client-reader")
        return client

    @property
    def greeting(self) -> Greeting:
        """What the daemon says of itself: model, role, operations, limits."""
        return self._core.greeting

    generate = _streams(operations.generate, GenerateStream)
    subscribe = _streams(operations.subscribe, StateStream)
    record = _streams(operations.record, LoadStream)
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

    async def status(self) -> Status:
        """Numbers of daemon and engine. Written out: a type variable would lose part of the union."""
        return await self._ask(operations.status())

    async def closed(self) -> None:
        """Wait until the daemon has closed the connection."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _send(self, op: str, fields: Mapping[str, Any]) -> int:
        request_id, frame = self._core.request(op, fields)
        self._arrived[request_id] = asyncio.Event()
        self._writer.write(frame)
        return request_id

    async def _ask(self, question: Question[T]) -> T:
        """A request with one answer."""
        request_id = self._send(question.op, question.fields)
        try:
            async with OwnTime(ANSWER_LIMIT_S):
                answer = await self._answer(request_id)
        except TimeoutError as error:
            raise unanswered(question.op, ANSWER_LIMIT_S) from error
        finally:
            self._forget(request_id)
        return question.read(answer)

    async def _answer(self, request_id: int) -> Answer:
        while (answer := self._core.answer(request_id)) is None:
            arrived = self._arrived[request_id]
            arrived.clear()
            await arrived.wait()
        return answer

    def _forget(self, request_id: int) -> None:
        self._core.forget(request_id)
        self._arrived.pop(request_id, None)

    async def _greet(self, path: Path | str) -> None:
        try:
            async with OwnTime(CONNECT_LIMIT_S):
                while not self._core.is_greeted:
                    self._core.feed(await self._reader.read(READ_BYTES))
        except TimeoutError as error:
            raise no_hello(path) from error
        except OSError as error:
            raise self._core.ended() from error

    async def _read(self) -> None:
        """Until the connection ends; then everybody who waits learns why."""
        try:
            while True:
                for request_id in self._core.feed(await self._reader.read(READ_BYTES)):
                    self._arrived[request_id].set()
        except (OSError, SemipdError):
            pass
        finally:
            self._core.ended()
            for arrived in self._arrived.values():
                arrived.set()
            self._writer.transport.abort()


async def _connected_socket(path: Path | str) -> socket.socket:
    num_tries = round(CONNECT_LIMIT_S / RETRY_S)
    for _ in range(num_tries):
        if (sock := connect_now(path)) is not None:
            return sock
        await asyncio.sleep(RETRY_S)
    raise too_busy(path)
