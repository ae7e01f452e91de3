"""The HTTP server: routes, what every request passes before its handler, and its life cycle."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Middleware

from semipd import __version__
from semipd.core.errors import SemipdError
from semipd.daemon.access.addresses import DEFAULT_BACKLOG
from semipd.daemon.access.auth import OPEN_ROUTES, PROBE_ROUTES
from semipd.daemon.access.callers import Caller
from semipd.daemon.openai.routes import add_routes as add_openai
from semipd.daemon.operators.drain import add_drain_routes
from semipd.daemon.operators.http import GENERATING_PATHS, refusal_recorder
from semipd.daemon.operators.http import add_routes as add_operations
from semipd.daemon.operators.partition import add_partition_routes
from semipd.daemon.servers.api import add_document
from semipd.daemon.state.services import Services
from semipd.daemon.web.body_cost import check_cost
from semipd.daemon.web.connections import Connection, Connections
from semipd.daemon.web.errors import CALLER, Handler, add_request_id, answer_errors, error_response
from semipd.daemon.web.expectations import ask_for_body, check_expectation, hold_expectations
from semipd.daemon.web.lingering import Lingering
from semipd.wire.own_time import OwnTime

SHUTDOWN_LIMIT_S = 3.0
"""For handlers to send their last words; then they are cancelled."""

LAST_ANSWERS_LIMIT_S = 1.0
"""For clients to take the last answers when the daemon ends."""

MAX_ARRIVING_BYTES = 256 * 2**20
"""Of all bodies that are being read; without it each connection could hold server.max_body_bytes."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@asynccontextmanager
async def serve_http(
    services: Services, listeners: Sequence[socket.socket], backlog: int = DEFAULT_BACKLOG
) -> AsyncIterator[None]:
    """Serve on `listeners`, which are closed at the end. `backlog`: connections that may wait to be
    accepted."""
    app = make_app(services)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_LIMIT_S)
    await runner.setup()
    assert runner.server is not None
    hold_expectations(runner.server)
    room = services.connection_room
    lingering = Lingering(services.config.server.max_body_bytes, room.num_lingering)
    connections = Connections(runner.server, services.config.limits, room, lingering)
    services.supervisor.on_exhausted.append(connections.close_idle)
    # those that wait to be accepted are accepted all at once
    backlog = min(backlog, max(room.num_passing, 1))
    servers: list[asyncio.Server] = []
    loop = asyncio.get_running_loop()
    try:
        for listener in listeners:
            servers.append(await loop.create_server(connections.newcomer, sock=listener, backlog=backlog))
        yield
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
        connections.refuse_overflows()
        await lingering.close_all(LAST_ANSWERS_LIMIT_S)


def make_app(services: Services) -> web.Application:
    max_body_bytes = services.config.server.max_body_bytes
    cors, guard = services.cors, _Guard(services)
    middlewares = [answer_errors, refusal_recorder(services), guard.middleware(), cors.middleware()]
    app = web.Application(middlewares=middlewares, client_max_size=max_body_bytes)
    app.on_response_prepare.append(add_request_id)
    cors.install(app)
    operations = _Operations(services)
    app.router.add_get("/v1/status", operations.status)
    app.router.add_get("/health", operations.health)
    app.router.add_get("/ready", operations.ready)
    app.router.add_get("/ping", operations.ping)
    app.router.add_post("/ping", operations.ping)
    app.router.add_get("/version", operations.version)
    app.router.add_get("/load", operations.load)
    add_openai(app, services)
    add_operations(app, services)
    add_partition_routes(app, services)
    add_drain_routes(app, services)
    add_document(app)

    async def close_prompts(_app: web.Application) -> None:
        await services.generation.prompts.close()

    app.on_cleanup.append(close_prompts)
    return app


class _Guard:
    """In order: who is it, may they, do they come from where they should, is there room, and the body."""

    def __init__(self, services: Services) -> None:
        config = services.config
        self._services = services
        self._max_body_bytes = config.server.max_body_bytes
        self._body_limit_s = config.limits.body_limit_s
        self._max_body_values = config.limits.max_body_values
        self._arriving_bytes = 0

    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if isinstance(request.protocol, Connection):
                request.protocol.head_has_come()
            resource = request.match_info.route.resource
            if resource is not None:
                await self._check(request, resource.canonical)
            try:
                return await handler(request)
            finally:
                unsaid = self._max_body_bytes if request.body_exists else 0
                self._services.generation.prompts.heap.note(request.content_length or unsaid)

        return guard

    async def _check(self, request: web.Request, route: str) -> None:
        request[CALLER] = caller = self._caller(request, route)
        self._services.door.check(caller, route, request.method)
        if route not in PROBE_ROUTES:
            self._services.hosts.check(request)
        check_expectation(request)
        if request.method in _SAFE_METHODS or route in PROBE_ROUTES:
            return
        _check_content_type(request)
        if request.path in GENERATING_PATHS:
            self._services.check_open()
        await self._read_body(request)

    def _caller(self, request: web.Request, route: str) -> Caller:
        """Raises SemipdError: `invalid_api_key`, `rate_limited`. Wrong keys count against the address."""
        if route in OPEN_ROUTES:
            return Caller(is_operator=True)
        address = f"address {request.remote}"
        try:
            caller = self._services.door.caller(request.headers.get("Authorization"))
        except SemipdError:
            self._services.limiter.take(address)
            raise
        if not (caller.is_operator and caller.name):
            self._services.limiter.take(caller.name or address)
        return caller

    async def _read_body(self, request: web.Request) -> None:
        """The body is then kept by the request: `request.read()` gives it again."""
        too_large = SemipdError(
            "body_too_large",
            f"The body is larger than server.max_body_bytes={self._max_body_bytes}.",
            "Send a shorter prompt, or raise server.max_body_bytes.",
        )
        expected_bytes = self._max_body_bytes if request.content_length is None else request.content_length
        if expected_bytes > self._max_body_bytes:
            raise too_large
        if self._arriving_bytes and self._arriving_bytes + expected_bytes > MAX_ARRIVING_BYTES:
            message = (
                f"Bodies of {self._arriving_bytes} bytes are being read; the limit is {MAX_ARRIVING_BYTES}."
            )
            raise SemipdError("overloaded", message, "Send the request again later.", retry_after_s=1)
        self._arriving_bytes += expected_bytes
        try:
            async with OwnTime(self._body_limit_s):
                await ask_for_body(request)
                await request.read()
        except TimeoutError as error:
            message = f"The body did not arrive within limits.body_limit_s={self._body_limit_s:g} s."
            raise SemipdError("request_timeout", message) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        except web.RequestPayloadError as error:
            raise SemipdError("malformed_http", f"The body cannot be read: {error!s:.200}.") from error
        finally:
            self._arriving_bytes -= expected_bytes
        await check_cost(await request.read(), self._max_body_values)


def _check_content_type(request: web.Request) -> None:
    """Browsers send other types across sites without asking (CSRF)."""
    if request.content_type != "application/json":
        raise SemipdError(
            "unsupported_media_type",
            f"The Content-Type is {request.headers.get('Content-Type', 'missing')!r:.200}.",
            "Send Content-Type: application/json.",
        )
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        message = f"The Content-Encoding is {encoding!r:.200}."
        raise SemipdError("unsupported_media_type", message, "Send the body as it is.")


class _Operations:
    """The routes that say how the daemon is."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ping(self, _request: web.Request) -> web.Response:
        """/health for those who want nothing said."""
        return web.Response()

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": __version__})

    async def load(self, _request: web.Request) -> web.Response:
        return web.json_response({"server_load": self._services.num_serving})

    async def ready(self, _request: web.Request) -> web.Response:
        try:
            await self._services.check_ready()
        except SemipdError as error:
            return error_response(error)
        return web.json_response({"status": "ready"})

    async def status(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._services.status())
