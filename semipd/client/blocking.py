"""Blocking client of the Unix socket, without threads: it reads while somebody waits for an answer.

Several generations and subscriptions may be under way on one connection. For one thread at a time.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from semipd.core.errors import SemipdError
from semipd.wire.address import connect_error, default_socket_path
from semipd.wire.client_protocol import (
    HELLO_LIMIT_S,
    GenerateItem,
    StateFrame,
    check_hello,
    error_from_wire,
    given,
    hello,
)
from semipd.wire.frames import FrameReader, encode_frame

CONNECT_LIMIT_S = 5.0
ANSWER_LIMIT_S = 10.0
LOOK_AFTER_S = 15.0
READ_BYTES = 2**16


class Client:
    """A connection. Create it with `connect`; use it as a context manager or `close` it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameReader()
        self._received: deque[dict[str, Any]] = deque()
        self._inboxes: dict[int, deque[dict[str, Any]]] = {}
        self._last_id = 0
        self._gone: SemipdError | None = None

    @classmethod
    def connect(cls, path: Path | str | None = None) -> "Client":
        """Connect to the socket at `path` (default: where the daemon puts it).

        Raises SemipdError: as `connect_error` says, or what the daemon refuses the connection for.
        """
        path = path or default_socket_path()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client = cls(sock)
        try:
            client._open(os.fspath(path))
        except OSError as error:
            sock.close()
            raise connect_error(path, error) from error
        except BaseException:
            sock.close()
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
    ) -> list[dict[str, Any]]:
        """Live and recent requests; with `request_id` that one only, and its events."""
        fields = given({"state": state, "limit": limit, "request_id": request_id})
        listed: list[dict[str, Any]] = self._ask("requests", fields)["requests"]
        return listed

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._ask("status", {})["status"]
        return status

    def partition(self) -> dict[str, Any]:
        """Partition control: mode, split, possible splits, history, decisions."""
        answer: dict[str, Any] = self._ask("partition.get", {})["partition"]
        return answer

    def set_partition(self, **wish: Any) -> dict[str, Any]:
        """`wish`: mode, prefill_units or decode_units, expires_s, actor, reason, dry_run. Raises SemipdError
        when partition control refuses it."""
        answer: dict[str, Any] = self._ask("partition.set", wish)["partition"]
        return answer

    def clear_partition(self, **act: Any) -> dict[str, Any]:
        """Back to auto. `act`: actor, reason."""
        answer: dict[str, Any] = self._ask("partition.clear", act)["partition"]
        return answer

    def slo(self) -> dict[str, Any]:
        """Targets, and what was observed."""
        answer: dict[str, Any] = self._ask("slo.get", {})["slo"]
        return answer

    def set_slo(self, **wish: Any) -> dict[str, Any]:
        """`wish`: ttft_ms, tpot_ms, percentile, window_s (those to change), actor, reason."""
        answer: dict[str, Any] = self._ask("slo.set", wish)["slo"]
        return answer

    def drain(self, *, cancel: bool = False, **wish: Any) -> dict[str, Any]:
        """Refuse new requests and let those under way finish; or, with `cancel`, serve again. `wish`:
        limit_s, actor, reason. Returns at once, with what is awaited."""
        answer: dict[str, Any] = self._ask("drain", given({"cancel": cancel, **wish}))["drain"]
        return answer

    def shutdown(self, **wish: Any) -> dict[str, Any]:
        """Ask the daemon to stop when the requests under way have finished; returns when it has agreed, with
        what is awaited. `wish`: limit_s, actor, reason."""
        answer: dict[str, Any] = self._ask("shutdown", given(wish))["drain"]
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

    def _open(self, path: str) -> None:
        self._sock.settimeout(CONNECT_LIMIT_S)
        self._sock.connect(path)
        self._sock.settimeout(HELLO_LIMIT_S)
        self._sock.sendall(encode_frame(hello("semipd-client")))
        while not self._received:
            self._read_once(HELLO_LIMIT_S)
        check_hello(self._received.popleft())

    def _send(self, op: str, fields: Mapping[str, Any]) -> int:
        if self._gone is not None:
            raise self._gone
        self._last_id = request_id = self._last_id + 1
        frame = encode_frame({"id": request_id, "op": op, **fields})
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

    def _ask(self, op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A request with one answer."""
        request_id = self._send(op, fields)
        try:
            return self._answer(request_id, ANSWER_LIMIT_S)
        except TimeoutError as error:
            message = f"The daemon did not answer {op} within {ANSWER_LIMIT_S:g} s."
            raise SemipdError("daemon_silent", message, "Look at its log.") from error
        finally:
            self._forget(request_id)

    def _answer(self, request_id: int, limit_s: float | None = None) -> dict[str, Any]:
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
        answer = inbox.popleft()
        if "error" in answer:
            raise error_from_wire(answer["error"])
        return answer

    def _look(self) -> None:
        """Raises SemipdError when the daemon does not answer any more; a refusal is an answer too."""
        try:
            self._ask("status", {})
        except SemipdError as error:
            if error.code == "daemon_silent" or self._gone is not None:
                raise

    def _frame_if_here(self, request_id: int) -> dict[str, Any] | None:
        """Likewise, if it has arrived already. What has gone wrong is for the next call of `_answer`."""
        with suppress(SemipdError):
            while self._gone is None and select.select([self._sock], [], [], 0)[0]:
                self._read_once(ANSWER_LIMIT_S)
                self._sort()
        inbox = self._inboxes[request_id]
        return inbox.popleft() if inbox and "error" not in inbox[0] else None

    def _forget(self, request_id: int) -> None:
        """Frames that still come for this request are dropped."""
        self._inboxes.pop(request_id, None)

    def _read_once(self, limit_s: float | None) -> None:
        """Wait for bytes; their frames stand in `_received`. Sets `_gone` at the end of the connection.
        Raises TimeoutError, and ProtocolError on what is no frame."""
        self._sock.settimeout(limit_s)
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise self._lost("The daemon closed the connection.")
        self._received.extend(self._frames.feed(data))

    def _sort(self) -> None:
        """Frames to inboxes."""
        while self._received:
            message = self._received.popleft()
            if message.get("id") is None and "error" in message:
                self._gone = error_from_wire(message["error"])
            elif message.get("id") in self._inboxes:
                self._inboxes[message["id"]].append(message)

    def _lost(self, message: str) -> SemipdError:
        """The connection is over; the daemon's own reason wins."""
        self._gone = self._gone or SemipdError("connection_lost", message)
        return self._gone


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

    def _next(self) -> dict[str, Any]:
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
    """Items of one generation. Iterate to the end, or `close` it to cancel what is left."""

    _end_op = "cancel"

    def __next__(self) -> GenerateItem:
        """The last item has a finish reason. Raises SemipdError when the request fails."""
        item = GenerateItem.from_wire(self._next())
        if item.finish_reason is not None:
            self._end()
        return item

    def cancel(self) -> bool:
        """Ask for the end; iteration goes on to the last item, whose finish reason is `cancelled`."""
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
