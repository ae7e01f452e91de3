"""Asyncio client of the Unix socket: many requests in flight on one connection."""

import asyncio
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

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
from semipd.wire.address import default_socket_path
from semipd.wire.client_protocol import GenerateItem, StateFrame, given, request_frame
from semipd.wire.client_results import Greeting, Model, Tokens
from semipd.wire.own_time import OwnTime


class AsyncClient:
    """A connection. Create it with `connect`; use it as an async context manager or `close` it."""

    greeting: Greeting
    """What the daemon says of itself: model, role, operations, limits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = Incoming()
        self._inboxes: dict[int, _Inbox] = {}
        self._last_id = 0
        self._gone: SemipdError | None = None
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
        sock = await _knock(path)
        client = cls(*await asyncio.open_unix_connection(sock=sock))
        try:
            await client._greet(path)
        except BaseException:
            await client.close()
            raise
        client._reading = asyncio.create_task(client._read(), name="semipd-client-reader")
        return client

    def generate(
        self,
        prompt: str | list[int] | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> "GenerateStream":
        """Start generating. `options` are the fields of the socket's generate request (max_tokens,
        temperature, seed, stop, ...). Errors are raised by the iteration."""
        fields = options | {"prompt": prompt, "messages": messages}
        return GenerateStream(self, self._send("generate", given(fields)))

    def subscribe(
        self,
        *,
        interval_ms: int = 1000,
        events: bool = False,
        after: str | None = None,
        kinds: Sequence[str] | None = None,
    ) -> "StateStream":
        """The daemon's state at this rate. `events`: also what happens, from the event `after` on, or from
        now on; `kinds`: only these. A slower consumer gets the newest state, and every event since.
        Errors are raised by the iteration."""
        chosen = None if kinds is None else list(kinds)
        fields = {"interval_ms": interval_ms, "events": events, "after": after, "kinds": chosen}
        return StateStream(self, self._send("subscribe", given(fields), _NewestState()))

    async def cancel(self, target: int) -> bool:
        """End the generation with this id on this connection. False: it is over already."""
        return bool((await self._ask("cancel", {"target": target}))["cancelled"])

    async def cancel_request(self, request_id: str) -> str:
        """End any request by its public id: `cancelled`, `already_finished` or `not_found`."""
        return str((await self._ask("cancel", {"request_id": request_id}))["result"])

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[RequestRow]:
        """Live and recent requests; with `request_id` that one only, and its events."""
        fields = given({"state": state, "limit": limit, "request_id": request_id})
        listed: list[RequestRow] = (await self._ask("requests", fields))["requests"]
        return listed

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Tokens:
        """Of a text or a conversation. `options`: return_token_strs, add_special_tokens, and those of the
        chat template."""
        fields = options | {"prompt": prompt, "messages": messages}
        return Tokens.from_wire(await self._ask("tokenize", given(fields)))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return str((await self._ask("detokenize", {"tokens": list(tokens)}))["prompt"])

    async def models(self) -> list[Model]:
        """What is served here."""
        return [Model.from_wire(Answer(model)) for model in (await self._ask("models", {}))["models"]]

    async def status(self) -> Status:
        status: Status = (await self._ask("status", {}))["status"]
        return status

    async def partition(self) -> PartitionDocument:
        """Partition control: mode, split, possible splits, history, decisions."""
        answer: PartitionDocument = (await self._ask("partition.get", {}))["partition"]
        return answer

    async def set_partition(self, **fields: Any) -> ChangeAnswer:
        """`fields`: mode, prefill_units or decode_units, expires_s, actor, reason, dry_run. Raises
        SemipdError when partition control refuses it."""
        answer: ChangeAnswer = (await self._ask("partition.set", fields))["partition"]
        return answer

    async def clear_partition(self, **fields: Any) -> ChangeAnswer:
        """Back to auto. `fields`: actor, reason."""
        answer: ChangeAnswer = (await self._ask("partition.clear", fields))["partition"]
        return answer

    async def slo(self) -> SloDocument:
        """Targets, and what was observed."""
        answer: SloDocument = (await self._ask("slo.get", {}))["slo"]
        return answer

    async def set_slo(self, **fields: Any) -> SloDocument:
        """`fields`: ttft_ms, tpot_ms, percentile, window_s (those to change), actor, reason."""
        answer: SloDocument = (await self._ask("slo.set", fields))["slo"]
        return answer

    async def drain(self, *, cancel: bool = False, **fields: Any) -> DrainState:
        """Refuse new requests and let those under way finish; or, with `cancel`, serve again. `fields`:
        limit_s, actor, reason. Returns at once, with what is awaited."""
        answer: DrainState = (await self._ask("drain", given({"cancel": cancel, **fields})))["drain"]
        return answer

    async def shutdown(self, **fields: Any) -> DrainState:
        """Ask the daemon to stop when the requests under way have finished; returns when it has agreed, with
        what is awaited. `fields`: limit_s, actor, reason."""
        answer: DrainState = (await self._ask("shutdown", given(fields)))["drain"]
        return answer

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

    def _send(self, op: str, fields: Mapping[str, Any], inbox: "_Inbox | None" = None) -> int:
        if self._gone is not None:
            raise self._gone
        self._last_id = request_id = self._last_id + 1
        frame = request_frame(request_id, op, fields, self.greeting.limits)
        self._inboxes[request_id] = inbox or asyncio.Queue()
        self._writer.write(frame)
        return request_id

    async def _ask(self, op: str, fields: Mapping[str, Any]) -> Answer:
        """A request with one answer."""
        request_id = self._send(op, fields)
        try:
            async with OwnTime(ANSWER_LIMIT_S):
                return await self._answer(request_id)
        except TimeoutError as error:
            message = f"The daemon did not answer {op} within {ANSWER_LIMIT_S:g} s."
            raise SemipdError("daemon_silent", message, "Look at its log.") from error
        finally:
            self._forget(request_id)

    async def _answer(self, request_id: int) -> Answer:
        answer = await self._inboxes[request_id].get()
        if isinstance(answer, SemipdError):
            raise answer
        return answer_of(answer)

    def _forget(self, request_id: int) -> None:
        """Frames that still come for this request are dropped."""
        self._inboxes.pop(request_id, None)

    async def _greet(self, path: Path | str) -> None:
        try:
            async with OwnTime(CONNECT_LIMIT_S):
                self.greeting = greeting_of(await self._receive())
        except TimeoutError as error:
            raise no_hello(path) from error
        except (OSError, EOFError) as error:
            raise self._incoming.ended() from error

    async def _receive(self) -> dict[str, Any]:
        while not self._incoming.messages:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise EOFError
            self._incoming.feed(data)
        return self._incoming.messages.popleft()

    async def _read(self) -> None:
        """Sort frames into inboxes until the connection ends; then every inbox learns why."""
        gone: SemipdError | None = None
        try:
            while True:
                message = await self._receive()
                inbox = self._inboxes.get(self._incoming.request_id(message) or 0)
                if inbox is not None:
                    inbox.put_nowait(message)
        except (OSError, EOFError):
            pass
        except SemipdError as error:
            gone = error
        finally:
            self._gone = gone or self._incoming.ended()
            for inbox in self._inboxes.values():
                inbox.put_nowait(self._gone)
            self._writer.transport.abort()


async def _knock(path: Path | str) -> socket.socket:
    num_tries = round(CONNECT_LIMIT_S / RETRY_S)
    for _ in range(num_tries):
        if (sock := knock(path)) is not None:
            return sock
        await asyncio.sleep(RETRY_S)
    raise too_busy(path)


_Inbox = asyncio.Queue[dict[str, Any] | SemipdError]


class _NewestState(_Inbox):
    """Unread state frames become one, so that a slow consumer leaves no backlog."""

    def _put(self, message: dict[str, Any] | SemipdError) -> None:
        queue: deque[dict[str, Any] | SemipdError] = self._queue  # type: ignore[attr-defined]
        unread = queue[-1] if queue else None
        if _has_state(unread) and _has_state(message):
            merged = StateFrame.from_wire(unread).then(StateFrame.from_wire(message))
            queue[-1] = merged.to_wire(message["id"])
        else:
            queue.append(message)


def _has_state(message: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(message, dict) and "state" in message


class _Stream:
    """Frames that answer one request. Leaving the context, or `aclose`, ends it without waiting for more."""

    _end_op: str

    def __init__(self, client: AsyncClient, request_id: int) -> None:
        self._client = client
        self._over = False
        self.id = request_id

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        if not self._over:
            self._end()
            if self._client._gone is None:
                await self._client._ask(self._end_op, {"target": self.id})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> Answer:
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._client._answer(self.id)
        except SemipdError:
            self._end()
            raise

    def _end(self) -> None:
        self._over = True
        self._client._forget(self.id)


class GenerateStream(_Stream):
    """Items of one generation, of all its choices as they come. Iterate to the end, or `aclose` it to cancel
    what is left."""

    _end_op = "cancel"

    async def __anext__(self) -> GenerateItem:
        """The last item of each choice has a finish reason. Raises SemipdError when the request fails."""
        item = GenerateItem.from_wire(await self._next())
        if item.is_last:
            self._end()
        return item

    async def cancel(self) -> bool:
        """Ask for the end of all choices; iteration goes on to their last items, which say `cancelled`."""
        return await self._client.cancel(self.id)


class StateStream(_Stream):
    """Frames of one subscription. Iterate, then `aclose` it."""

    _end_op = "unsubscribe"

    async def __anext__(self) -> StateFrame:
        """Ends when the daemon ends the subscription. Raises SemipdError when it is refused, or the
        connection is lost."""
        frame = StateFrame.from_wire(await self._next())
        if frame.ended is not None:
            self._end()
            raise StopAsyncIteration
        return frame
