"""The Unix socket's server: many connections, many requests in flight on each."""

import asyncio
import logging
import os
import socket
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from pydantic import ValidationError

from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.addresses import peer_credentials
from semipd.daemon.generation import Generation
from semipd.daemon.partition import (
    SOCKET_OPERATIONS,
    PartitionClear,
    PartitionQuestion,
    PartitionSet,
    SloSet,
    answer_socket,
)
from semipd.daemon.schema import CancelRequest, GenerateRequest, PlainRequest, SocketRequest, refusal
from semipd.daemon.services import Services, usage_to_wire
from semipd.wire.client_protocol import (
    HELLO_LIMIT_S,
    GenerateItem,
    RequestId,
    check_hello,
    error_frame,
    hello,
)
from semipd.wire.frames import FrameReader, encode_frame

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 4096
"""Requests of one connection."""

WRITE_LIMIT_S = 60.0
"""A client that reads nothing for so long has gone."""

LAST_WORDS_LIMIT_S = 3.0
READ_BYTES = 2**16

_SCHEMAS: dict[str, type[SocketRequest]] = {
    "generate": GenerateRequest,
    "cancel": CancelRequest,
    "status": PlainRequest,
    "shutdown": PlainRequest,
    **SOCKET_OPERATIONS,
}


@asynccontextmanager
async def serve_unix_socket(services: Services, listener: socket.socket) -> AsyncIterator[None]:
    """Serve on `listener`. At the end each connection may say its last words, within a limit."""
    connections: dict[_Connection, asyncio.Task[Any]] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(services, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        connections[connection] = task
        try:
            await connection.run()
        finally:
            del connections[connection]

    server = await asyncio.start_unix_server(accept, sock=listener)
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*(connection.goodbye() for connection in connections))
        if connections:
            await asyncio.wait(connections.values(), timeout=LAST_WORDS_LIMIT_S)
        await server.wait_closed()


class _Connection:
    """One client. Its end, for whatever reason, cancels what it has in flight."""

    def __init__(
        self, services: Services, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._services = services
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._received: deque[dict[str, Any]] = deque()
        self._operations: dict[RequestId, asyncio.Task[None]] = {}
        self._generations: dict[RequestId, Generation] = {}
        self._peer = (0, 0)  # pid, uid

    async def run(self) -> None:
        try:
            await self._greet()
            while (message := await self._receive()) is not None:
                await self._dispatch(message)
        except ProtocolError as error:
            await self._say_quietly(error_frame(None, error))
        except (ConnectionError, TimeoutError):
            pass
        except Exception:
            log.exception("a connection on the Unix socket failed")
        finally:
            await self._close()

    async def goodbye(self) -> None:
        """Wait, with a limit, for the answers under way; then close."""
        if self._operations:
            await asyncio.wait(self._operations.values(), timeout=LAST_WORDS_LIMIT_S)
        self._writer.close()

    async def _greet(self) -> None:
        self._peer = peer_credentials(self._writer.get_extra_info("socket"))
        uid = self._peer[1]
        if uid not in (os.getuid(), 0):
            raise ProtocolError("peer_not_allowed", f"This socket serves user {os.getuid()}, not {uid}.")
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
        try:
            request = self._parse(message)
        except SemipdError as error:
            await self._say(error_frame(request_id, error))
            return
        task = asyncio.create_task(self._answer(request), name=f"socket-{message['op']}")
        self._operations[request.id] = task
        task.add_done_callback(lambda _task: self._operations.pop(request.id))

    def _parse(self, message: dict[str, Any]) -> SocketRequest:
        schema = _SCHEMAS.get(str(message.get("op")))
        if schema is None:
            raise SemipdError(
                "unknown_operation",
                f"There is no operation {message.get('op')!r:.80}.",
                f"Operations: {', '.join(_SCHEMAS)}.",
                param="op",
            )
        try:
            request = schema.model_validate(message)
        except ValidationError as error:
            raise refusal(error) from error
        if request.id in self._operations:
            raise SemipdError(
                "duplicate_id", f"A request with id {request.id!r:.80} is in flight.", param="id"
            )
        if len(self._operations) >= MAX_IN_FLIGHT:
            raise SemipdError("overloaded", f"{MAX_IN_FLIGHT} requests are in flight on this connection.")
        return request

    async def _answer(self, request: SocketRequest) -> None:
        try:
            match request:
                case GenerateRequest():
                    await self._generate(request)
                case CancelRequest():
                    await self._say({"id": request.id, "cancelled": self._cancel(request.target)})
                case PlainRequest(op="status"):
                    await self._say({"id": request.id, "status": await self._services.status()})
                case PlainRequest(op="shutdown"):
                    await self._say({"id": request.id, "shutting_down": True})
                    self._services.shut_down("a client asked for it")
                case PartitionQuestion() | PartitionSet() | PartitionClear() | SloSet():
                    answer = await answer_socket(self._services, request, *self._peer)
                    await self._say({"id": request.id, **answer})
        except SemipdError as error:
            await self._say_quietly(error_frame(request.id, error))
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except Exception:
            log.exception("an operation on the Unix socket failed")
            failed = SemipdError("internal_error", "The daemon failed; its log says how.")
            await self._say_quietly(error_frame(request.id, failed))

    def _cancel(self, target: RequestId) -> bool:
        generation = self._generations.get(target)
        if generation is not None:
            generation.cancel()
        return generation is not None

    async def _generate(self, request: GenerateRequest) -> None:
        options, prompt = request, request.prompt
        if (prompt is None) == (request.messages is None):
            raise SemipdError("invalid_value", "Send either prompt or messages.", param="prompt")
        if prompt is None:
            prompt = self._services.generation.render(request.messages or [])
            # A template writes its special tokens itself.
            options = request.model_copy(update={"add_special_tokens": False})
        async with self._services.generation.open(uuid.uuid4().hex, prompt, options) as generation:
            self._generations[request.id] = generation
            try:
                await self._stream(request.id, generation)
            finally:
                del self._generations[request.id]

    async def _stream(self, request_id: RequestId, generation: Generation) -> None:
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                usage = usage_to_wire(generation.usage) if piece.finish_reason else None
                item = GenerateItem(piece.text, piece.token_ids, piece.finish_reason, usage)
                await self._say(item.to_wire(request_id))

    async def _say(self, message: dict[str, Any]) -> None:
        self._writer.write(encode_frame(message))
        async with asyncio.timeout(WRITE_LIMIT_S):
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
