"""Blocking client of the Unix socket, without threads: it reads while somebody waits for an answer.

Several generations and subscriptions may be under way on one connection. For one thread at a time.
"""

import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from semipd.client.opening import (
    ANSWER_LIMIT_S,
    CONNECT_LIMIT_S,
    MAX_ATTEMPTS,
    READ_BYTES,
    RETRY_S,
    Answer,
    Incoming,
    answer_of,
    greeting_of,
    is_late,
    knock,
    no_hello,
    too_busy,
)
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import DrainState, Status
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloDocument
from semipd.core.state.requests import RequestRow
from semipd.system.readiness import any_readable
from semipd.wire.address import default_socket_path
from semipd.wire.client_protocol import GenerateItem, StateFrame, given, request_frame
from semipd.wire.client_results import Greeting, Model, Tokens

LOOK_AFTER_S = 15.0


class Client:
    """A connection. Create it with `connect`; use it as a context manager or `close` it."""

    greeting: Greeting
    """What the daemon says of itself: model, role, operations, limits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._incoming = Incoming()
        self._inboxes: dict[int, deque[dict[str, Any]]] = {}
        self._last_id = 0
        self._gone: SemipdError | None = None

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
        client = cls(_knock(path))
        try:
            client._greet(path)
        except BaseException:
            client.close()
            raise
        return client

    def generate(
        self,
        prompt: str | list[int] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> "GenerateIterator":
        """Start generating. `options` are the fields of the socket's generate request (max_tokens,
        temperature, seed, stop, ...). Errors are raised by the iteration."""
        fields = options | {"prompt": prompt, "messages": messages}
        return GenerateIterator(self, self._send("generate", given(fields)))

    def subscribe(
        self,
        *,
        interval_ms: int = 1000,
        events: bool = False,
        after: str | None = None,
        kinds: Sequence[str] | None = None,
    ) -> "StateIterator":
        """The daemon's state at this rate. `events`: also what happens, from the event `after` on, or from
        now on; `kinds`: only these. A slower consumer gets the newest state, and every event since."""
        chosen = None if kinds is None else list(kinds)
        fields = {"interval_ms": interval_ms, "events": events, "after": after, "kinds": chosen}
        return StateIterator(self, self._send("subscribe", given(fields)))

    def cancel(self, target: int) -> bool:
        """End the generation with this id on this connection. False: it is over already."""
        return bool(self._ask("cancel", {"target": target})["cancelled"])

    def cancel_request(self, request_id: str) -> str:
        """End any request by its public id: `cancelled`, `already_finished` or `not_found`."""
        return str(self._ask("cancel", {"request_id": request_id})["result"])

    def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[RequestRow]:
        """Live and recent requests; with `request_id` that one only, and its events."""
        fields = given({"state": state, "limit": limit, "request_id": request_id})
        listed: list[RequestRow] = self._ask("requests", fields)["requests"]
        return listed

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Tokens:
        """Of a text or a conversation. `options`: return_token_strs, add_special_tokens, and those of the
        chat template."""
        fields = options | {"prompt": prompt, "messages": messages}
        return Tokens.from_wire(self._ask("tokenize", given(fields)))

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._ask("detokenize", {"tokens": list(tokens)})["prompt"])

    def models(self) -> list[Model]:
        """What is served here."""
        return [Model.from_wire(Answer(model)) for model in self._ask("models", {})["models"]]

    def status(self) -> Status:
        status: Status = self._ask("status", {})["status"]
        return status

    def partition(self) -> PartitionDocument:
        """Partition control: mode, split, possible splits, history, decisions."""
        answer: PartitionDocument = self._ask("partition.get", {})["partition"]
        return answer

    def set_partition(self, **fields: Any) -> ChangeAnswer:
        """`fields`: mode, prefill_units or decode_units, expires_s, actor, reason, dry_run. Raises
        SemipdError when partition control refuses it."""
        answer: ChangeAnswer = self._ask("partition.set", fields)["partition"]
        return answer

    def clear_partition(self, **fields: Any) -> ChangeAnswer:
        """Back to auto. `fields`: actor, reason."""
        answer: ChangeAnswer = self._ask("partition.clear", fields)["partition"]
        return answer

    def slo(self) -> SloDocument:
        """Targets, and what was observed."""
        answer: SloDocument = self._ask("slo.get", {})["slo"]
        return answer

    def set_slo(self, **fields: Any) -> SloDocument:
        """`fields`: ttft_ms, tpot_ms, percentile, window_s (those to change), actor, reason."""
        answer: SloDocument = self._ask("slo.set", fields)["slo"]
        return answer

    def drain(self, *, cancel: bool = False, **fields: Any) -> DrainState:
        """Refuse new requests and let those under way finish; or, with `cancel`, serve again. `fields`:
        limit_s, actor, reason. Returns at once, with what is awaited."""
        answer: DrainState = self._ask("drain", given({"cancel": cancel, **fields}))["drain"]
        return answer

    def shutdown(self, **fields: Any) -> DrainState:
        """Ask the daemon to stop when the requests under way have finished; returns when it has agreed, with
        what is awaited. `fields`: limit_s, actor, reason."""
        answer: DrainState = self._ask("shutdown", given(fields))["drain"]
        return answer

    def close(self) -> None:
        """What is under way on this connection is cancelled by the daemon."""
        self._gone = self._gone or SemipdError("connection_lost", "This client has been closed.")
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greet(self, path: Path | str) -> None:
        try:
            while not self._incoming.messages:
                self._read_once(CONNECT_LIMIT_S)
        except TimeoutError as error:
            raise no_hello(path) from error
        self.greeting = greeting_of(self._incoming.messages.popleft())

    def _send(self, op: str, fields: Mapping[str, Any]) -> int:
        if self._gone is not None:
            raise self._gone
        self._last_id = request_id = self._last_id + 1
        frame = request_frame(request_id, op, fields, self.greeting.limits)
        self._inboxes[request_id] = deque()
        self._sock.settimeout(ANSWER_LIMIT_S)
        try:
            self._sock.sendall(frame)
        except TimeoutError as error:
            raise self._lost(f"The daemon took no request for {ANSWER_LIMIT_S:g} s.") from error
        except OSError as error:
            # The daemon may have said why before it closed.
            with suppress(SemipdError, OSError):
                while True:
                    self._read_once(ANSWER_LIMIT_S)
                    self._sort()
            raise self._gone or self._lost("The daemon closed the connection.") from error
        return request_id

    def _ask(self, op: str, fields: Mapping[str, Any]) -> Answer:
        """A request with one answer."""
        request_id = self._send(op, fields)
        try:
            return self._answer(request_id, ANSWER_LIMIT_S)
        except TimeoutError as error:
            message = f"The daemon did not answer {op} within {ANSWER_LIMIT_S:g} s."
            raise SemipdError("daemon_silent", message, "Look at its log.") from error
        finally:
            self._forget(request_id)

    def _answer(self, request_id: int, limit_s: float | None = None) -> Answer:
        """The next frame for this request. Raises TimeoutError when nothing at all comes for `limit_s`; None:
        a daemon that answers other questions may take its time."""
        inbox = self._inboxes[request_id]
        while not inbox:
            if self._gone is not None:
                raise self._gone
            try:
                self._read_once(limit_s or LOOK_AFTER_S)
            except TimeoutError:
                if limit_s is not None:
                    raise
                self._look()
            self._sort()
        return answer_of(inbox.popleft())

    def _look(self) -> None:
        """Raises SemipdError when the daemon does not answer any more; a refusal is an answer too."""
        try:
            self._ask("status", {})
        except SemipdError as error:
            if error.code == "daemon_silent" or self._gone is not None:
                raise

    def _frame_if_here(self, request_id: int) -> Answer | None:
        """Likewise, if it has arrived already. What has gone wrong is for the next call of `_answer`."""
        with suppress(SemipdError):
            while self._gone is None and any_readable([self._sock.fileno()], 0):
                self._read_once(ANSWER_LIMIT_S)
                self._sort()
        inbox = self._inboxes[request_id]
        return answer_of(inbox.popleft()) if inbox and "error" not in inbox[0] else None

    def _forget(self, request_id: int) -> None:
        """Frames that still come for this request are dropped."""
        self._inboxes.pop(request_id, None)

    def _read_once(self, limit_s: float | None) -> None:
        """Wait for bytes; their frames stand in `_incoming`. Sets `_gone` at the end of the connection.
        Raises TimeoutError, and ProtocolError on what is no frame."""
        self._sock.settimeout(limit_s)
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        except TimeoutError:
            if not any_readable([self._sock.fileno()], 0):
                raise
            data = self._sock.recv(READ_BYTES)  # it is here: we were the ones that slept
        if not data:
            self._gone = self._gone or self._incoming.ended()
            raise self._gone
        try:
            self._incoming.feed(data)
        except SemipdError as error:
            self._gone = error
            raise

    def _sort(self) -> None:
        """Frames to inboxes."""
        while self._incoming.messages:
            message = self._incoming.messages.popleft()
            inbox = self._inboxes.get(self._incoming.request_id(message) or 0)
            if inbox is not None:
                inbox.append(message)

    def _lost(self, message: str) -> SemipdError:
        """The connection is over; the daemon's own reason wins."""
        self._gone = self._gone or SemipdError("connection_lost", message)
        return self._gone


def _knock(path: Path | str) -> socket.socket:
    num_tries = round(CONNECT_LIMIT_S / RETRY_S)
    for _ in range(num_tries):
        if (sock := knock(path)) is not None:
            return sock
        time.sleep(RETRY_S)
    raise too_busy(path)


class _Iterator:
    """Frames that answer one request. Leaving the context, or `close`, ends it without waiting for more."""

    _end_op: str

    def __init__(self, client: Client, request_id: int) -> None:
        self._client = client
        self._over = False
        self.id = request_id

    def __iter__(self) -> Self:
        return self

    def close(self) -> None:
        if not self._over:
            self._end()
            if self._client._gone is None:
                self._client._ask(self._end_op, {"target": self.id})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> Answer:
        if self._over:
            raise StopIteration
        try:
            return self._client._answer(self.id)
        except SemipdError:
            self._end()
            raise

    def _end(self) -> None:
        self._over = True
        self._client._forget(self.id)


class GenerateIterator(_Iterator):
    """Items of one generation, of all its choices as they come. Iterate to the end, or `close` it to cancel
    what is left."""

    _end_op = "cancel"

    def __next__(self) -> GenerateItem:
        """The last item of each choice has a finish reason. Raises SemipdError when the request fails."""
        item = GenerateItem.from_wire(self._next())
        if item.is_last:
            self._end()
        return item

    def cancel(self) -> bool:
        """Ask for the end of all choices; iteration goes on to their last items, which say `cancelled`."""
        return self._client.cancel(self.id)


class StateIterator(_Iterator):
    """Frames of one subscription. Iterate, then `close` it."""

    _end_op = "unsubscribe"

    def __next__(self) -> StateFrame:
        """Waits for a frame; of several that have come, one with the newest state and all events. Ends when
        the daemon ends the subscription."""
        frame = StateFrame.from_wire(self._next())
        while (later := self._client._frame_if_here(self.id)) is not None:
            frame = frame.then(StateFrame.from_wire(later))
        if frame.ended is not None:
            self._end()
            if not frame.state:
                raise StopIteration
        return frame
