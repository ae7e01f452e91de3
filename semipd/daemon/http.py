"""The HTTP server: routes, the checks every state-changing call passes, and its life cycle."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from semipd.core.errors import SemipdError
from semipd.daemon.addresses import DEFAULT_BACKLOG
from semipd.daemon.api import add_document
from semipd.daemon.http_errors import Handler, add_request_id, answer_errors, error_response
from semipd.daemon.openai_routes import add_routes as add_openai
from semipd.daemon.operations import add_routes as add_operations
from semipd.daemon.operations import refusal_recorder
from semipd.daemon.partition import add_partition_routes
from semipd.daemon.services import Services

SHUTDOWN_LIMIT_S = 3.0
"""For handlers to send their last words; then they are cancelled."""

READ_LIMIT_S = 60.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@asynccontextmanager
async def serve_http(
    services: Services,
    listeners: Sequence[socket.socket],
    host: str,
    max_body_bytes: int,
    backlog: int = DEFAULT_BACKLOG,
) -> AsyncIterator[None]:
    """Serve on `listeners`, which are closed at the end. `host` is a further name clients may use.
    `backlog`: connections that may wait to be accepted."""
    runner = web.AppRunner(
        make_app(services, host, max_body_bytes),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_LIMIT_S,
    )
    await runner.setup()
    try:
        for listener in listeners:
            await web.SockSite(runner, listener, backlog=backlog).start()
        yield
    finally:
        await runner.cleanup()


def make_app(services: Services, host: str, max_body_bytes: int) -> web.Application:
    names = _LOCAL_NAMES | {host.lower()}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_known = request.match_info.http_exception is None
        if is_known and request.method not in _SAFE_METHODS:
            _check_host(request, names)
            _check_content_type(request)
            await _read_body(request, max_body_bytes)
        return await handler(request)

    middlewares = [answer_errors, refusal_recorder(services), guard]
    app = web.Application(middlewares=middlewares, client_max_size=max_body_bytes)
    app.on_response_prepare.append(add_request_id)
    operations = _Operations(services)
    app.router.add_get("/v1/status", operations.status)
    app.router.add_get("/health", operations.health)
    app.router.add_get("/ready", operations.ready)
    add_openai(app, services)
    add_operations(app, services)
    add_partition_routes(app, services)
    add_document(app)
    return app


def _check_host(request: web.Request, names: frozenset[str]) -> None:
    """A page in the operator's browser can reach us under a name of its own (DNS rebinding)."""
    host = request.headers.get("Host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower() not in names:
        raise SemipdError(
            "host_not_allowed",
            f"The Host header {host!r:.200} is not allowed.",
            f"Use one of: {', '.join(sorted(names))}.",
        )


def _check_content_type(request: web.Request) -> None:
    """Browsers send other types across sites without asking (CSRF)."""
    if request.content_type != "application/json":
        raise SemipdError(
            "unsupported_media_type",
            f"The Content-Type is {request.headers.get('Content-Type', 'missing')!r:.200}.",
            "Send Content-Type: application/json.",
        )


async def _read_body(request: web.Request, max_body_bytes: int) -> None:
    """The body is then kept by the request: `request.read()` gives it again."""
    too_large = SemipdError(
        "body_too_large",
        f"The body is larger than server.max_body_bytes={max_body_bytes}.",
        "Send a shorter prompt, or raise server.max_body_bytes.",
    )
    if (request.content_length or 0) > max_body_bytes:
        raise too_large
    try:
        async with asyncio.timeout(READ_LIMIT_S):
            await request.read()
    except TimeoutError as error:
        message = f"The body did not arrive within {READ_LIMIT_S:g} s."
        raise SemipdError("request_timeout", message) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error


class _Operations:
    """The routes that only look."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        try:
            await self._services.check_ready()
        except SemipdError as error:
            return error_response(error)
        return web.json_response({"status": "ready"})

    async def status(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._services.status())
