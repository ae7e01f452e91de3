"""Draining, over HTTP and over the socket."""

from typing import Annotated

from aiohttp import web
from pydantic import Field

from semipd.core.state.daemon import DrainState
from semipd.daemon.operators.actions import OperatorAction, http_peer, parsed_body
from semipd.daemon.requests.drain import MAX_LIMIT_S
from semipd.daemon.requests.schema import SocketRequest
from semipd.daemon.state.services import Services

LimitS = Annotated[float, Field(ge=0.0, le=MAX_LIMIT_S)]


class DrainOptions(OperatorAction):
    """POST /v1/drain. `limit_s`: for requests under way; None: drain.limit_s."""

    limit_s: LimitS | None = None


class DrainRequest(DrainOptions, SocketRequest):
    """With `cancel` the daemon serves again."""

    cancel: bool = False


class ShutdownRequest(DrainOptions, SocketRequest):
    pass


async def get_drain(services: Services, _request: web.Request) -> DrainState:
    return services.drain.to_wire()


async def post_drain(services: Services, request: web.Request) -> DrainState:
    body = parsed_body(DrainOptions, await request.read() or b"{}")
    services.drain.begin(body.actor or http_peer(request), body.reason, body.limit_s)
    return services.drain.to_wire()


async def delete_drain(services: Services, request: web.Request) -> DrainState:
    body = parsed_body(OperatorAction, await request.read() or b"{}")
    services.drain.cancel(body.actor or http_peer(request), body.reason)
    return services.drain.to_wire()
