"""HTTP connections: at most so many, each with a time limit for its first head; refusals in our own shape."""

import asyncio
import json
import logging
import os
import re
import socket
from contextlib import suppress
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.host.process_limits import ConnectionRoom
from semipd.daemon.web.errors import REASONS, error_body, error_headers, error_response
from semipd.daemon.web.lingering import Lingering, LingeringTransport
from semipd.daemon.web.status_codes import status_of
from semipd.wire.own_time import OwnTimer

log = logging.getLogger(__name__)

KEEPALIVE_S = 75.0
"""An idle connection is closed after so long; so is one whose next head does not come to its end."""

OVERFLOW_HEAD_S = 1.0
"""For the head of a request on a connection too many; then it is refused in any case."""

_OPERATORS_REQUEST = re.compile(rb"(?:GET|HEAD) (?:/health|/ready|/ping|/metrics|/v1/status)[ ?]")

UNSENT_BYTES = 2**16
"""Kept by the kernel for a client that reads slowly, which would otherwise be several MiB."""


class HttpConnection(web.RequestHandler):
    """aiohttp's, which answers what is no HTTP in its own words, lets a first head take a minute, and closes
    a socket that a client is still sending to. `answers_once`: it is closed after its first answer."""

    __slots__ = ("_answers_once", "_head_limit", "_head_limit_s", "_lingering")

    def __init__(
        self,
        manager: web.Server,
        *,
        lingering: Lingering,
        head_limit_s: float,
        answers_once: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._lingering = lingering
        self._answers_once = answers_once
        self._head_limit_s = head_limit_s
        self._head_limit: OwnTimer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ours = LingeringTransport(cast(asyncio.Transport, transport), self._lingering, self)
        super().connection_made(cast(asyncio.Transport, ours))
        peer: socket.socket = transport.get_extra_info("socket")
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._head_limit = OwnTimer(self._loop, self._head_limit_s, self._no_head)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.head_has_come()
        super().connection_lost(exc)

    def head_has_come(self) -> None:
        """The first request is being handled."""
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _no_head(self) -> None:
        self._head_limit = None
        if self.transport is not None:
            limit = f"limits.head_limit_s={self._head_limit_s:g}"
            error = SemipdError("request_timeout", f"No request came within {limit} s.")
            self.transport.write(_plain_answer(error))
            self.transport.close()
        self.force_close()

    def close_if_idle(self) -> None:
        """Unless its first request is still to come, or one is being handled."""
        if self._waiter is not None and self._head_limit is None:
            self.force_close()

    def force_close(self) -> None:
        """A connection that waits for a request is owed nothing."""
        if self._waiter is not None and isinstance(self.transport, LingeringTransport):
            self.transport.close_at_once()
        super().force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What is left of a body is no request."""
        if not resp.prepared and (self._answers_once or not request.content.is_eof()):
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What could not be parsed. Anybody can send that: it is no error of ours to be logged as one."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        log.debug("%s sent what is not HTTP: %s", request.remote, message)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if isinstance(exc, LineTooLong):
            hint = "Shorten it, or raise limits.max_header_bytes."
            error = SemipdError("headers_too_large", "The request line or a header is too long.", hint)
        else:
            error = SemipdError("malformed_http", "The request is not valid HTTP.")
        answer = error_response(error)
        answer.force_close()
        return answer


class _Newcomer(asyncio.Protocol):
    """A connection that is being accepted. One too many is refused when its request's head has come, so that
    no client meets an answer before it has asked; an operator who asks how the daemon is gets one of the
    reserved connections."""

    def __init__(self, connections: "Connections") -> None:
        self._connections = connections
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none to isinstance
        if self._connections.have_room:
            self._connections.hand_over(self._transport)
            return
        self._timer = asyncio.get_running_loop().call_later(OVERFLOW_HEAD_S, self.refuse)
        self._connections.overflows.add(self)
        if len(self._connections.overflows) > self._connections.room.num_overflowing:
            self._drop_received()
            self.refuse()

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._connections.may_have_reserved(self._head):
            self._timer.cancel()
            self._connections.overflows.discard(self)
            self._connections.hand_over(self._transport, self._head)
        elif b"\r\n\r\n" in self._head or len(self._head) > self._connections.max_header_bytes:
            self.refuse()

    def eof_received(self) -> None:
        self.refuse()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        self._connections.overflows.discard(self)

    def _drop_received(self) -> None:
        """What is unread when a connection is closed makes the system reset it."""
        with suppress(OSError):
            os.read(self._transport.get_extra_info("socket").fileno(), self._connections.max_header_bytes)

    def refuse(self) -> None:
        self._timer.cancel()
        self._connections.overflows.discard(self)
        self._connections.refuse(self._transport)


class Connections:
    """Makes what handles each connection of a server: as many as the limits allow, and refusals."""

    def __init__(
        self, server: web.Server, limits: LimitsConfig, room: ConnectionRoom, lingering: Lingering
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._limits = limits
        self._lingering = lingering
        self.room = room
        self._refusal = _plain_answer(_too_many(room))
        self.overflows: set[_Newcomer] = set()
        """Those that are still being listened to."""

    @property
    def max_header_bytes(self) -> int:
        return self._limits.max_header_bytes

    def newcomer(self) -> asyncio.Protocol:
        """What `loop.create_server` calls for each connection; it is counted when it is made."""
        return _Newcomer(self)

    @property
    def have_room(self) -> bool:
        return len(self._server.connections) < self.room.max_connections

    def may_have_reserved(self, head: bytes) -> bool:
        """Whether so much of a head asks for what is shown on reserved connections, and one is free."""
        num_open = len(self._server.connections)
        is_free = num_open < self.room.max_connections + self.room.num_reserved
        return is_free and _OPERATORS_REQUEST.match(head) is not None

    def hand_over(self, transport: asyncio.Transport, received: bytes = b"") -> None:
        """`received` on a reserved connection, which is closed after its answer."""
        connection = self._connection(answers_once=bool(received))
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if received:
            connection.data_received(received)

    def close_idle(self) -> None:
        """Those that wait for a further request: their files are needed."""
        for connection in self._server.connections:
            if isinstance(connection, HttpConnection):
                connection.close_if_idle()

    def refuse_overflows(self) -> None:
        """At the end of the server."""
        for overflow in [*self.overflows]:
            overflow.refuse()

    def refuse(self, transport: asyncio.Transport) -> None:
        transport.write(self._refusal)
        self._lingering.close(transport)

    def _connection(self, *, answers_once: bool) -> HttpConnection:
        return HttpConnection(
            self._server,
            loop=self._loop,
            lingering=self._lingering,
            head_limit_s=self._limits.head_limit_s,
            answers_once=answers_once,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=0,
            access_log=None,
            max_line_size=self._limits.max_header_bytes,
            max_field_size=self._limits.max_header_bytes,
            auto_decompress=False,  # a small body could become a large one
        )


def _too_many(room: ConnectionRoom) -> SemipdError:
    message = f"{room.cause} are open."
    return SemipdError("too_many_connections", message, room.next_step, retry_after_s=1)


def _plain_answer(error: SemipdError) -> bytes:
    """For a connection that no request has come from."""
    body = json.dumps(error_body(error)).encode()
    status = status_of(error)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error_headers(error),
    }
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
