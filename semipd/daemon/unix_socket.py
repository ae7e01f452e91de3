"""The Unix socket's server: many connections, many requests in flight on each."""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from semipd.core.brief import brief
from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.addresses import DEFAULT_BACKLOG
from semipd.daemon.callers import OPERATOR, Caller
from semipd.daemon.chat import for_template
from semipd.daemon.drain_routes import DrainRequest, ShutdownRequest, answer_drain
from semipd.daemon.generation import Generation
from semipd.daemon.history import timing_to_wire
from semipd.daemon.lingering import MAX_LINGERING, linger
from semipd.daemon.partition import (
    SOCKET_OPERATIONS,
    PartitionClear,
    PartitionQuestion,
    PartitionSet,
    SloSet,
    answer_socket,
    socket_peer,
)
from semipd.daemon.peers import Peer, peer_of
from semipd.daemon.prompts import Prompt
from semipd.daemon.schema import (
    CancelRequest,
    GenerateRequest,
    PlainRequest,
    RequestsRequest,
    SocketRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    refusal,
)
from semipd.daemon.services import Services, usage_to_wire
from semipd.daemon.subscription import Subscription
from semipd.wire.client_protocol import (
    HELLO_LIMIT_S,
    OPERATIONS,
    GenerateItem,
    RequestId,
    check_hello,
    error_frame,
    hello,
)
from semipd.wire.frames import FrameReader, encode_frame

log = logging.getLogger(__name__)

RESERVED_CONNECTIONS = 16
"""Of limits.max_connections, and at most an eighth of them: not for guests."""

MAX_IN_FLIGHT = 4096
"""Requests of one connection."""

WRITE_LIMIT_S = 60.0
"""A client that reads nothing for so long has gone."""

LAST_WORDS_LIMIT_S = 3.0
READ_BYTES = 2**16

GUEST_OPERATIONS = frozenset({"generate", "cancel", "requests"})
"""What a member of socket.group may do, with requests of their own."""

_SCHEMAS: dict[str, type[SocketRequest]] = {
    "generate": GenerateRequest,
    "cancel": CancelRequest,
    "status": PlainRequest,
    "requests": RequestsRequest,
    "subscribe": SubscribeRequest,
    "unsubscribe": UnsubscribeRequest,
    "drain": DrainRequest,
    "shutdown": ShutdownRequest,
    **SOCKET_OPERATIONS,
}
assert tuple(_SCHEMAS) == OPERATIONS, "the protocol and its server name different operations"


@asynccontextmanager
async def serve_unix_socket(
    services: Services, listener: socket.socket, backlog: int = DEFAULT_BACKLOG
) -> AsyncIterator[None]:
    """Serve on `listener`. At the end each connection may say its last words, within a limit."""
    connections: dict[_Connection, asyncio.Task[Any]] = {}
    num_turned_away = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(connections) >= _room(services, writer):
            nonlocal num_turned_away
            num_turned_away += 1
            try:
                await _turn_away(reader, writer, services.config.limits.max_connections, num_turned_away)
            finally:
                num_turned_away -= 1
            return
        connection = _Connection(services, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        connections[connection] = task
        try:
            await connection.run()
        finally:
            del connections[connection]

    server = await asyncio.start_unix_server(accept, sock=listener, backlog=backlog)
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*(connection.goodbye() for connection in connections))
        if connections:
            await asyncio.wait(connections.values(), timeout=LAST_WORDS_LIMIT_S)
        await server.wait_closed()


def _room(services: Services, writer: asyncio.StreamWriter) -> int:
    """Connections that may be open for one more of this peer: guests leave some to our own user."""
    maximum: int = services.config.limits.max_connections
    uid = peer_of(writer.get_extra_info("socket")).uid
    is_ours = uid in (os.getuid(), 0)
    return maximum if is_ours else maximum - min(RESERVED_CONNECTIONS, maximum // 8)


class _Connection:
    """One client. Its end, for whatever reason, cancels what it has in flight."""

    def __init__(
        self, services: Services, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._services = services
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(max_values=services.config.limits.max_body_values)
        self._received: deque[dict[str, Any]] = deque()
        self._operations: dict[RequestId, asyncio.Task[None]] = {}
        self._generations: dict[RequestId, Generation] = {}
        self._subscriptions: dict[RequestId, Subscription] = {}
        self._peer = Peer(0, -1)
        self._caller = Caller()
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        try:
            await self._greet()
            while (message := await self._receive()) is not None:
                await self._dispatch(message)
        except ProtocolError as error:
            await self._say_quietly(error_frame(None, error))
            await linger(self._reader, self._writer)
        except (ConnectionError, TimeoutError):
            pass
        except Exception:
            log.exception("a connection on the Unix socket failed")
        finally:
            await self._close()

    async def goodbye(self) -> None:
        """Wait, with a limit, for the answers under way; then close."""
        for subscription in self._subscriptions.values():
            subscription.end("shutting_down")
        if self._operations:
            await asyncio.wait(self._operations.values(), timeout=LAST_WORDS_LIMIT_S)
        self._writer.close()

    async def _greet(self) -> None:
        self._peer = peer_of(self._writer.get_extra_info("socket"))
        self._caller = self._peer.caller(self._services.door.guests_gid)
        await self._say(hello("semipd"))
        async with asyncio.timeout(HELLO_LIMIT_S):
            message = await self._receive()
        if message is not None:
            check_hello(message)

    async def _receive(self) -> dict[str, Any] | None:
        """The next frame; None when the client has closed its end. Raises ProtocolError."""
        while not self._received:
            data = await self._reader.read(READ_BYTES)
            if not data:
                return None
            self._received.extend(self._frames.feed(data))
        return self._received.popleft()

    async def _dispatch(self, message: dict[str, Any]) -> None:
        raw_id = message.get("id")
        request_id = raw_id if isinstance(raw_id, int | str) and not isinstance(raw_id, bool) else None
        arrival_ns = time.monotonic_ns()
        try:
            request = self._parse(message)
        except SemipdError as error:
            await self._say(error_frame(request_id, error))
            return
        task = asyncio.create_task(self._answer(request, arrival_ns), name=f"socket-{message['op']}")
        self._operations[request.id] = task
        task.add_done_callback(lambda _task: self._operations.pop(request.id))

    def _parse(self, message: dict[str, Any]) -> SocketRequest:
        op = message.get("op")
        schema = _SCHEMAS.get(op) if isinstance(op, str) else None
        if schema is None:
            raise SemipdError(
                "unknown_operation",
                f"There is no operation {brief(op)}.",
                f"Operations: {', '.join(_SCHEMAS)}.",
                param="op",
            )
        if self._caller is not OPERATOR and message["op"] not in GUEST_OPERATIONS:
            raise SemipdError(
                "operator_required",
                f"{message['op']} is for the daemon's own user.",
                f"Members of socket.group may: {', '.join(sorted(GUEST_OPERATIONS))}.",
            )
        try:
            request = schema.model_validate(message)
        except ValidationError as error:
            raise refusal(error) from error
        if request.id in self._operations:
            raise SemipdError(
                "duplicate_id", f"A request with id {brief(request.id)} is in flight.", param="id"
            )
        if len(self._operations) >= MAX_IN_FLIGHT:
            raise SemipdError("overloaded", f"{MAX_IN_FLIGHT} requests are in flight on this connection.")
        return request

    async def _answer(self, request: SocketRequest, arrival_ns: int) -> None:
        try:
            match request:
                case GenerateRequest():
                    await self._generate(request, arrival_ns)
                case SubscribeRequest():
                    await self._subscribe(request)
                case DrainRequest() | ShutdownRequest():
                    answer = answer_drain(self._services, request, socket_peer(*self._peer[:2]))
                    await self._say({"id": request.id, **answer})
                case PartitionQuestion() | PartitionSet() | PartitionClear() | SloSet():
                    answer = await answer_socket(self._services, request, *self._peer[:2])
                    await self._say({"id": request.id, **answer})
                case _:
                    await self._say({"id": request.id} | await self._one_answer(request))
        except SemipdError as error:
            await self._say_quietly(error_frame(request.id, error))
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except Exception:
            log.exception("an operation on the Unix socket failed")
            failed = SemipdError("internal_error", "The daemon failed; its log says how.")
            await self._say_quietly(error_frame(request.id, failed))

    async def _one_answer(self, request: SocketRequest) -> dict[str, Any]:
        match request:
            case PlainRequest(op="status"):
                return {"status": await self._services.status()}
            case RequestsRequest():
                return {"requests": self._listed(request)}
            case CancelRequest():
                return self._cancel(request)
            case UnsubscribeRequest():
                return {"unsubscribed": self._unsubscribe(request.target)}
        raise AssertionError(f"no answer for {request!r}")

    def _listed(self, request: RequestsRequest) -> list[dict[str, Any]]:
        history, caller = self._services.history, self._caller
        if request.request_id is not None:
            named = history.named(request.request_id, caller)
            return [history.to_wire(record, timeline=True) for record in named]
        return [history.to_wire(record) for record in history.records(request.state, request.limit, caller)]

    def _cancel(self, request: CancelRequest) -> dict[str, Any]:
        """{cancelled}; by public id also {result}, as DELETE /v1/requests/{id} says it."""
        if request.target is not None and request.request_id is not None:
            raise SemipdError("invalid_value", "Send either target or request_id.", param="target")
        if request.request_id is not None:
            result = self._services.cancel_named(request.request_id, self._caller)
            return {"cancelled": result == "cancelled", "result": result}
        if request.target is None:
            raise SemipdError("missing_field", "Send target or request_id.", param="target")
        generation = self._generations.get(request.target)
        if generation is not None:
            generation.cancel()
        return {"cancelled": generation is not None}

    async def _subscribe(self, request: SubscribeRequest) -> None:
        subscription = Subscription(self._services, request, self._writer, self._say)
        self._subscriptions[request.id] = subscription
        try:
            await subscription.run()
        finally:
            del self._subscriptions[request.id]

    def _unsubscribe(self, target: RequestId) -> bool:
        subscription = self._subscriptions.get(target)
        if subscription is not None:
            subscription.end("unsubscribed")
        return subscription is not None

    async def _generate(self, request: GenerateRequest, arrival_ns: int) -> None:
        request_id = request.request_id or uuid.uuid4().hex
        try:
            with self._services.serving():
                await self._generate_as(request_id, request, arrival_ns)
        except SemipdError as error:
            self._services.history.answered_with_error(error.code, request_id, arrival_ns)
            raise

    async def _generate_as(self, request_id: str, request: GenerateRequest, arrival_ns: int) -> None:
        if (request.prompt is None) == (request.messages is None):
            raise SemipdError("invalid_value", "Send either prompt or messages.", param="prompt")
        service, caller = self._services.generation, self._caller
        if caller is not OPERATOR:
            self._services.limiter.take(caller.name)
        num_known_tokens = len(request.prompt) if isinstance(request.prompt, list) else 0
        with self._services.enter(request.priority, 1, num_known_tokens) as place:
            prompt = await self._prompt(request)
            prepared = service.prepare(prompt, request)
            place.fill(1, len(prompt.token_ids))
            generation = service.admit(request_id, prepared, arrival_ns, caller=caller)
        self._generations[request.id] = generation
        try:
            await self._stream(request, generation)
        finally:
            del self._generations[request.id]
            generation.close()

    async def _prompt(self, request: GenerateRequest) -> Prompt:
        service = self._services.generation
        prompts, bound = service.prompts, service.prompt_bound(request)
        if request.prompt is None:
            return await prompts.of_messages(await for_template(request.messages or []), bound)
        special = request.add_special_tokens is not False
        [prompt] = await prompts.of([request.prompt], bound, add_special_tokens=special)
        return prompt

    async def _stream(self, request: GenerateRequest, generation: Generation) -> None:
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                item = GenerateItem(piece.text, piece.token_ids)
                if piece.finish_reason is not None:
                    item = replace(item, finish_reason=piece.finish_reason, usage=_usage(request, generation))
                generation.sending(begins=True)
                await self._say(item.to_wire(request.id))
                generation.sending(begins=False)

    async def _say(self, message: dict[str, Any]) -> None:
        """One after the other: while the client reads nothing, at most one message is added to what the
        transport holds, however many requests are in flight."""
        async with asyncio.timeout(WRITE_LIMIT_S), self._writing:
            await self._writer.drain()
            self._writer.write(encode_frame(message))
            await self._writer.drain()

    async def _say_quietly(self, message: dict[str, Any]) -> None:
        """For last words: the client may have gone."""
        with suppress(OSError):
            await self._say(message)

    async def _close(self) -> None:
        operations = list(self._operations.values())
        for task in operations:
            task.cancel()
        if operations:
            await asyncio.wait(operations)
        self._writer.close()
        try:
            async with asyncio.timeout(LAST_WORDS_LIMIT_S):
                await self._writer.wait_closed()
        except OSError:  # TimeoutError included: what is unsent is lost
            self._writer.transport.abort()


async def _turn_away(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int, num_turned_away: int
) -> None:
    error = SemipdError(
        "too_many_connections",
        f"limits.max_connections={limit} are open.",
        "Use fewer connections, or try again later.",
        retry_after_s=1,
    )
    writer.write(encode_frame(error_frame(None, error)))
    if num_turned_away <= MAX_LINGERING:
        await linger(reader, writer)
    writer.close()
    with suppress(OSError):
        async with asyncio.timeout(LAST_WORDS_LIMIT_S):
            await writer.wait_closed()


def _usage(request: GenerateRequest, generation: Generation) -> dict[str, Any]:
    timing = timing_to_wire([generation.record], time.monotonic_ns()) if request.include_timing else None
    return {**usage_to_wire(generation.usage, timing)}
