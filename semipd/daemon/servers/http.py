"""The HTTP server's application and its life cycle."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from semipd.daemon.access.addresses import DEFAULT_BACKLOG
from semipd.daemon.servers.guard import Guard, refusal_recorder
from semipd.daemon.servers.routes import ROUTES
from semipd.daemon.state.services import Services
from semipd.daemon.web.connections import Connections
from semipd.daemon.web.errors import add_request_id, answer_errors
from semipd.daemon.web.expectations import hold_expectations
from semipd.daemon.web.lingering import Lingering
from semipd.daemon.web.routes import add_routes

SHUTDOWN_LIMIT_S = 3.0
"""For handlers to send their last words; then they are cancelled."""

LAST_ANSWERS_LIMIT_S = 1.0
"""For clients to take the last answers when the daemon ends."""


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
    cors, guard = services.cors, Guard(services)
    middlewares = [answer_errors, refusal_recorder(services), guard.middleware(), cors.middleware()]
    app = web.Application(middlewares=middlewares, client_max_size=max_body_bytes)
    app.on_response_prepare.append(add_request_id)
    cors.install(app)
    add_routes(app, ROUTES, services)

    async def close_prompts(_app: web.Application) -> None:
        await services.generation.prompts.close()

    app.on_cleanup.append(close_prompts)
    return app
