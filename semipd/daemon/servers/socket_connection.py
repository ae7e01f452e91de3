"""One connection on the Unix socket: its hello, and its requests, many of them in flight."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from semipd.core.brief import brief
from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.callers import OPERATOR
from semipd.daemon.host.process_limits import exhausted
from semipd.daemon.openai.models import model_card
from semipd.daemon.requests.schema import SocketId, SocketRequest, check_names, refusal
from semipd.daemon.servers.frame_stream import (
    CLOSE_LIMIT_S,
    FRAME_LIMIT_S,
)
from semipd.daemon.servers.socket_operations import TABLE, Operation, allowed
from semipd.daemon.servers.socket_session import Session
from semipd.daemon.web.passing import PASSING
from semipd.daemon.web.streaming import WRITE_LIMIT_S
from semipd.wire.client_protocol import HELLO_LIMIT_S, RequestId, check_hello, error_frame, hello
from semipd.wire.frames import MAX_FRAME_BYTES, MalformedBodyError, longest_array, longest_map
from semipd.wire.own_time import OwnTime

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 4096
"""Requests of one connection."""

LAST_READ_LIMIT_S = 0.5
"""For clients to read that the daemon ends. What they have not read by then the kernel keeps for them."""

HUNG_UP_CHECK_S = 0.1
"""A client that has ended its half is looked after so often: the end of the other half wakes nobody."""

_ID: TypeAdapter[RequestId] = TypeAdapter(SocketId)


class SocketConnection:
    """One client. Its end, for whatever reason, cancels what it has in flight."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stream = session.stream
        self._operations: dict[RequestId, asyncio.Task[None]] = {}
        self._ending: asyncio.Future[SemipdError] = asyncio.get_running_loop().create_future()
        self.close_limit_s = CLOSE_LIMIT_S

    async def run(self) -> SemipdError | None:
        """Serves until it ends. Returns what its client is owed as a last word."""
        serving = asyncio.create_task(self._serve(), name="socket-connection")
        ends: list[asyncio.Future[Any]] = [serving, self._ending]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled([serving, *self._operations.values()])
        return self._ending.result() if self._ending.done() else serving.result()

    async def shut_down(self) -> None:
        """Wait, with a limit, for the answers under way; then close."""
        for subscription in self._session.subscriptions.values():
            subscription.end("shutting_down")
        if self._operations:
            await asyncio.wait(self._operations.values(), timeout=CLOSE_LIMIT_S)
        self.close_limit_s = LAST_READ_LIMIT_S
        self._end(SemipdError("shutting_down", "The daemon is shutting down."))

    def _end(self, why: SemipdError) -> None:
        """The first reason counts."""
        if not self._ending.done():
            self._ending.set_result(why)

    async def _serve(self) -> SemipdError | None:
        """Why the connection ends; None: its client has closed it."""
        try:
            await self._greet()
            while await self._serve_one():
                if self._stream.has_more:
                    await asyncio.sleep(0)  # others have their turn
            await self._finish()
        except ProtocolError as error:
            return error
        except OSError:
            pass  # it has gone
        except PASSING:
            raise
        except BaseException:
            log.exception("a connection on the Unix socket failed")
            return SemipdError("internal_error", "The daemon failed; its log says how.")
        return None

    async def _serve_one(self) -> bool:
        """Whether more may come."""
        try:
            message = await self._stream.receive()
        except MalformedBodyError as error:
            await self._refuse(_valid_id(error.request_id), error)
            return True
        if message is not None:
            await self._dispatch(message)
        return message is not None

    async def _finish(self) -> None:
        """Its client sends no more. What is in flight is answered, unless nobody reads any more."""
        while self._operations and not self._stream.has_hung_up:
            await asyncio.wait(self._operations.values(), timeout=HUNG_UP_CHECK_S)
        with suppress(TimeoutError):
            await self._stream.flushed()

    async def _greet(self) -> None:
        session = self._session
        session.peer = peers.peer_of(self._stream.writer.get_extra_info("socket"))
        session.caller = session.peer.caller(session.services.auth.guests_gid)
        await self._stream.say(_welcome(session))
        try:
            async with OwnTime(HELLO_LIMIT_S):
                message = await self._stream.receive()
        except TimeoutError as error:
            raise _no_hello(self._stream.pending_bytes) from error
        if message is not None:
            check_hello(message)

    async def _dispatch(self, message: dict[str, Any]) -> None:
        arrival_ns = time.monotonic_ns()
        request_id = _valid_id(message.get("id"))
        try:
            if request_id in self._operations:
                raise SemipdError(
                    "duplicate_id", f"A request with id {request_id!r:.80} is in flight.", param="id"
                )
            operation, request = self._parse(message)
        except SemipdError as error:
            await self._refuse(request_id, error)
            return
        task = asyncio.create_task(
            self._answer(operation, request, arrival_ns), name=f"socket-{operation.name}"
        )
        self._operations[request.id] = task
        task.add_done_callback(lambda _task: self._operations.pop(request.id))

    async def _refuse(self, request_id: RequestId | None, error: SemipdError) -> None:
        """An error with the id of a request in flight would look like the end of that."""
        if request_id in self._operations:
            await self._stream.say(error_frame(None, error) | {"duplicate": request_id})
        else:
            await self._say_error(request_id, error)

    def _parse(self, message: dict[str, Any]) -> tuple[Operation, SocketRequest]:
        name = message.get("op")
        operation = TABLE.get(name) if isinstance(name, str) else None
        if operation is None:
            raise SemipdError(
                "unknown_operation",
                f"There is no operation {brief(name)}.",
                f"Operations: {', '.join(TABLE)}.",
                param="op",
            )
        if self._session.caller is not OPERATOR and not operation.for_guests:
            raise SemipdError(
                "operator_required",
                f"{operation.name} is for the daemon's own user.",
                f"Members of socket.group may: {', '.join(sorted(allowed(is_operator=False)))}.",
            )
        check_names(operation.body, message)
        try:
            request = operation.body.model_validate(message)
        except ValidationError as error:
            raise refusal(error) from error
        if len(self._operations) >= MAX_IN_FLIGHT:
            raise SemipdError("overloaded", f"{MAX_IN_FLIGHT} requests are in flight on this connection.")
        return operation, request

    async def _answer(self, operation: Operation, request: SocketRequest, arrival_ns: int) -> None:
        try:
            answer = await operation.answer(self._session, request, arrival_ns)
            if answer is not None:
                await self._stream.say({"id": request.id, **answer})
        except ProtocolError as error:
            self._end(error)
        except SemipdError as error:
            await self._say_last(request.id, error)
        except ConnectionError:
            self._stream.writer.transport.abort()
        except PASSING:
            raise
        except BaseException as error:
            if (refused := exhausted(error, "The request cannot be worked on now")) is not None:
                await self._say_last(request.id, refused)
                return
            log.exception("an operation on the Unix socket failed")
            failed = SemipdError("internal_error", "The daemon failed; its log says how.")
            await self._say_last(request.id, failed)

    async def _say_last(self, request_id: RequestId, error: SemipdError) -> None:
        """The client may have gone, or read nothing; else it learns that the request is over."""
        try:
            with suppress(ConnectionError):
                await self._say_error(request_id, error)
        except ProtocolError as unread:
            self._end(unread)

    async def _say_error(self, request_id: RequestId | None, error: SemipdError) -> None:
        try:
            await self._stream.say(error_frame(request_id, error))
        except ProtocolError:
            raise
        except SemipdError as unsayable:
            log.error("an error on the Unix socket could not be sent: %s", unsayable)
            short = SemipdError("internal_error", f"The request failed ({unsayable.code}); the log says how.")
            await self._stream.say(error_frame(request_id, short))


def _welcome(session: Session) -> dict[str, Any]:
    """Our hello: what the client may do here, with what, and within which limits."""
    card = model_card(session.services)
    is_operator = session.caller is OPERATOR
    max_values = session.services.config.limits.max_body_values
    return hello("semipd") | {
        "model": card["id"],
        "max_model_len": card["max_model_len"],
        "role": "operator" if is_operator else "guest",
        "operations": allowed(is_operator=is_operator),
        "limits": {
            "frame_bytes": MAX_FRAME_BYTES,
            "array_entries": longest_array(max_values),
            "map_entries": longest_map(max_values),
            "values": max_values,
            "in_flight": MAX_IN_FLIGHT,
            "hello_s": HELLO_LIMIT_S,
            "frame_s": FRAME_LIMIT_S,
            "unread_s": WRITE_LIMIT_S,
        },
    }


def _no_hello(num_bytes: int) -> ProtocolError:
    came = f"{num_bytes} bytes of one came" if num_bytes else "Nothing came"
    return ProtocolError(
        "hello_expected",
        f"No hello came within {HELLO_LIMIT_S:g} s. {came}.",
        "Send a hello as the first frame, at once.",
    )


def _valid_id(value: Any) -> RequestId | None:
    try:
        return _ID.validate_python(value, strict=True)
    except ValidationError:
        return None


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    """Ended and awaited."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
