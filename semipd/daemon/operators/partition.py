"""Partition control and SLO targets for operators: the same questions over HTTP and over the socket.

The coordinator decides and answers; here requests get their shape, an actor, and wall-clock times.
"""

import pwd
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from semipd.core.messages import GetPartition, SetPartition, SetSlo
from semipd.core.slo import SLO_BOUNDS
from semipd.core.split import MAX_EXPIRY_S
from semipd.daemon.history.wall_times import with_wall_times
from semipd.daemon.requests.schema import WHOLE, SocketRequest, check_names, refusal, within
from semipd.daemon.state.daemon_state import DaemonState
from semipd.daemon.state.services import Services
from semipd.daemon.web.errors import CALLER

MAX_WORDS = 200
"""Characters of an actor or a reason: they are kept in the history and shown on screens."""

B = TypeVar("B", bound=BaseModel)


def _visible(text: str) -> str:
    """No control sequence reaches the terminals and logs where it is shown."""
    return "".join(char if char.isprintable() else " " for char in text)


Words = Annotated[str, Field(max_length=MAX_WORDS), AfterValidator(_visible)]
Units = Annotated[int, Field(ge=0, le=2**31), WHOLE]


class PartitionAct(BaseModel):
    """`actor`: who does it, in their own words; the peer's name when left out."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    actor: Words | None = None
    reason: Words = ""


class PartitionWish(PartitionAct):
    """PUT /v1/partition and partition.set; see core.messages.SetPartition."""

    mode: Literal["auto", "fixed", "off"] = "fixed"
    prefill_units: Units | None = None
    decode_units: Units | None = None
    expires_s: Annotated[float, Field(gt=0.0, le=MAX_EXPIRY_S)] | None = None
    dry_run: bool = False


class SloWish(PartitionAct):
    """PATCH /v1/slo and slo.set: the targets to change."""

    ttft_ms: Annotated[float, within(SLO_BOUNDS["ttft_ms"])] | None = None
    tpot_ms: Annotated[float, within(SLO_BOUNDS["tpot_ms"])] | None = None
    percentile: Annotated[float, within(SLO_BOUNDS["percentile"])] | None = None
    window_s: Annotated[float, within(SLO_BOUNDS["window_s"])] | None = None

    @property
    def targets(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True, exclude={"actor", "reason", "id", "op"})


class PartitionSet(PartitionWish, SocketRequest):
    op: Literal["partition.set"]


class PartitionClear(PartitionAct, SocketRequest):
    op: Literal["partition.clear"]


class SloSet(SloWish, SocketRequest):
    op: Literal["slo.set"]


class PartitionQuestion(SocketRequest):
    op: Literal["partition.get", "slo.get"]


PartitionRequest = PartitionQuestion | PartitionSet | PartitionClear | SloSet


async def answer_socket(
    services: DaemonState, request: PartitionRequest, pid: int, uid: int
) -> dict[str, Any]:
    """The answer, without its id. Raises SemipdError."""
    desk = PartitionDesk(services)
    peer = socket_peer(pid, uid)
    match request:
        case PartitionSet():
            return {"partition": await desk.set(request, peer)}
        case PartitionClear():
            return {"partition": await desk.clear(request.actor or peer, request.reason)}
        case SloSet():
            return {"slo": await desk.set_slo(request, peer)}
        case PartitionQuestion(op="slo.get"):
            return {"slo": await desk.slo()}
        case PartitionQuestion():
            return {"partition": await desk.get()}


class PartitionDesk:
    """Puts questions to the coordinator. Every method raises SemipdError: what partition control refuses,
    and what the supervisor raises without an engine."""

    def __init__(self, services: DaemonState) -> None:
        self._ask = services.supervisor.ask
        self._clock = services.clock

    async def get(self) -> dict[str, Any]:
        return with_wall_times(await self._ask(GetPartition), self._clock)

    async def set(self, wish: PartitionWish, peer: str) -> dict[str, Any]:
        def question(nonce: int) -> SetPartition:
            return SetPartition(
                nonce,
                wish.mode,
                wish.actor or peer,
                wish.reason,
                wish.prefill_units,
                wish.decode_units,
                wish.expires_s,
                wish.dry_run,
            )

        return with_wall_times(await self._ask(question), self._clock)

    async def clear(self, actor: str, reason: str) -> dict[str, Any]:
        """Back to auto."""
        answer = await self._ask(lambda nonce: SetPartition(nonce, "auto", actor, reason))
        return with_wall_times(answer, self._clock)

    async def slo(self) -> dict[str, Any]:
        return await self._ask(lambda nonce: SetSlo(nonce, {}, ""))

    async def set_slo(self, wish: SloWish, peer: str) -> dict[str, Any]:
        return await self._ask(lambda nonce: SetSlo(nonce, wish.targets, wish.actor or peer, wish.reason))


def add_partition_routes(app: web.Application, services: Services) -> None:
    routes = _Routes(PartitionDesk(services))
    app.router.add_get("/v1/partition", routes.get)
    app.router.add_put("/v1/partition", routes.put)
    app.router.add_delete("/v1/partition", routes.delete)
    app.router.add_get("/v1/slo", routes.get_slo)
    app.router.add_patch("/v1/slo", routes.patch_slo)


class _Routes:
    """A body is JSON; DELETE may go without one."""

    def __init__(self, desk: PartitionDesk) -> None:
        self._desk = desk

    async def get(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._desk.get())

    async def put(self, request: web.Request) -> web.Response:
        wish = parsed_body(PartitionWish, await request.read())
        return web.json_response(await self._desk.set(wish, http_peer(request)))

    async def delete(self, request: web.Request) -> web.Response:
        act = parsed_body(PartitionAct, await request.read() or b"{}")
        return web.json_response(await self._desk.clear(act.actor or http_peer(request), act.reason))

    async def get_slo(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._desk.slo())

    async def patch_slo(self, request: web.Request) -> web.Response:
        wish = parsed_body(SloWish, await request.read())
        return web.json_response(await self._desk.set_slo(wish, http_peer(request)))


def parsed_body(schema: type[B], body: bytes) -> B:
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError:
        given = None  # the schema says what is wrong
    check_names(schema, given)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error) from error


def http_peer(request: web.Request) -> str:
    """For the history: the key's name, or the address."""
    return f"http {request[CALLER].name or request.remote or 'client'}"


def socket_peer(pid: int, uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"user {uid}"
    return f"{name} (pid {pid})"
