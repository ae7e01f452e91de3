"""Draining, over HTTP and over the socket."""

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from semipd.daemon.operators.partition import PartitionAct, http_peer, parsed_body
from semipd.daemon.requests.drain import MAX_LIMIT_S
from semipd.daemon.requests.schema import SocketRequest
from semipd.daemon.state.services import Services

LimitS = Annotated[float, Field(ge=0.0, le=MAX_LIMIT_S)]


class DrainWish(PartitionAct):
    """POST /v1/drain. `limit_s`: for requests under way; None: drain.limit_s."""

    limit_s: LimitS | None = None


class DrainRequest(DrainWish, SocketRequest):
    """With `cancel` the daemon serves again."""

    op: Literal["drain"]
    cancel: bool = False


class ShutdownRequest(DrainWish, SocketRequest):
    op: Literal["shutdown"]


def answer_drain(services: Services, request: DrainRequest | ShutdownRequest, peer: str) -> dict[str, Any]:
    """The answer, without its id. Raises SemipdError(`shutting_down`)."""
    actor = request.actor or peer
    match request:
        case ShutdownRequest():
            services.drain.begin(actor, request.reason, request.limit_s, stops=True)
            return {"shutting_down": True, "drain": services.drain.to_wire()}
        case DrainRequest(cancel=True):
            services.drain.cancel(actor, request.reason)
        case DrainRequest():
            services.drain.begin(actor, request.reason, request.limit_s)
    return {"drain": services.drain.to_wire()}


def add_drain_routes(app: web.Application, services: Services) -> None:
    routes = _Routes(services)
    app.router.add_get("/v1/drain", routes.get)
    app.router.add_post("/v1/drain", routes.post)
    app.router.add_delete("/v1/drain", routes.delete)


class _Routes:
    """Bodies may be left out."""

    def __init__(self, services: Services) -> None:
        self._drain = services.drain

    async def get(self, _request: web.Request) -> web.Response:
        return self._shown()

    async def post(self, request: web.Request) -> web.Response:
        wish = parsed_body(DrainWish, await request.read() or b"{}")
        self._drain.begin(wish.actor or http_peer(request), wish.reason, wish.limit_s)
        return self._shown()

    async def delete(self, request: web.Request) -> web.Response:
        act = parsed_body(PartitionAct, await request.read() or b"{}")
        self._drain.cancel(act.actor or http_peer(request), act.reason)
        return self._shown()

    def _shown(self) -> web.Response:
        return web.json_response(self._drain.to_wire())
