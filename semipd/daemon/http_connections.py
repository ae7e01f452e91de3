"""HTTP connections: at most so many, each with a time limit for its first head; refusals in our own shape."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from semipd.config_sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.http_errors import REASONS, error_body, error_headers, error_response, status_of
from semipd.daemon.own_timer import OwnTimer

log = logging.getLogger(__name__)

KEEPALIVE_S = 75.0
"""An idle connection is closed after so long; so is one whose next head does not come to its end."""

UNSENT_BYTES = 2**16
"""Kept by the kernel for a client that reads slowly, which would otherwise be several MiB."""


class Connection(web.RequestHandler):
    """aiohttp's, which answers what is no HTTP in its own words, and lets a first head take a minute."""

    __slots__ = ("_head_limit", "_head_limit_s")

    def __init__(self, manager: web.Server, *, head_limit_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_limit_s = head_limit_s
        self._head_limit: OwnTimer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
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
        if isinstance(self.transport, asyncio.Transport):
            limit = f"limits.head_limit_s={self._head_limit_s:g}"
            error = SemipdError("request_timeout", f"No request came within {limit} s.")
            self.transport.write(_plain_answer(error))
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What aiohttp refuses before any middleware is asked: an Expect header."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = error_response(SemipdError("expectation_failed", resp.text or resp.reason))
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


class _Full(asyncio.Protocol):
    """Too many connections: the answer is the same for everybody, and nothing is read."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._answer)
        transport.close()


def connection_factory(server: web.Server, limits: LimitsConfig) -> Callable[[], asyncio.Protocol]:
    """What `loop.create_server` calls for each connection."""
    loop = asyncio.get_running_loop()
    full = SemipdError(
        "too_many_connections",
        f"limits.max_connections={limits.max_connections} are open.",
        "Use fewer connections, or try again later.",
        retry_after_s=1,
    )
    answer = _plain_answer(full)

    def connection() -> asyncio.Protocol:
        if len(server.connections) >= limits.max_connections:
            return _Full(answer)
        return Connection(
            server,
            loop=loop,
            head_limit_s=limits.head_limit_s,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            auto_decompress=False,  # a small body could become a large one
        )

    return connection


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
