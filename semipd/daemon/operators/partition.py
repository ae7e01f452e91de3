"""Partition control and SLO targets for operators: the same questions over HTTP and over the socket.

The coordinator decides and answers; here requests get their shape, an actor, and wall-clock times. Every
function raises SemipdError: what partition control refuses, and what the supervisor raises without an engine.
"""

from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from semipd.core.errors import SemipdError
from semipd.core.messages import GetPartition, SetClass, SetPartition, SetSlo
from semipd.core.slo import BATCH_CLASS, DEFAULT_CLASS, SLO_BOUNDS, TARGET_BOUNDS, Targets
from semipd.core.split import MAX_EXPIRY_S
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer, SloDocument
from semipd.daemon.history.wall_times import with_wall_times
from semipd.daemon.operators.actions import OperatorAction, http_peer, parsed_body
from semipd.daemon.requests.schema import WHOLE, SocketRequest, Target, within
from semipd.daemon.state.daemon_state import DaemonState
from semipd.daemon.state.services import Services

Units = Annotated[int, Field(ge=0, le=2**31), WHOLE]


class PartitionOverride(OperatorAction):
    """PUT /v1/partition and partition.set; see core.messages.SetPartition."""

    mode: Literal["auto", "fixed", "off"] = "fixed"
    prefill_units: Units | None = None
    decode_units: Units | None = None
    expires_s: Annotated[float, Field(gt=0.0, le=MAX_EXPIRY_S)] | None = None
    dry_run: bool = False


class SloUpdate(OperatorAction):
    """PATCH /v1/slo and slo.set: the targets to change, of one service class."""

    service_class: str = DEFAULT_CLASS
    ttft_ms: Target | None = None
    ttft_ms_per_1k_tokens: Target | None = None
    tpot_ms: Target | None = None
    itl_ms: Target | None = None
    itl_percentile: Annotated[float, within(SLO_BOUNDS["itl_percentile"])] | None = None
    percentile: Annotated[float, within(SLO_BOUNDS["percentile"])] | None = None
    window_s: Annotated[float, within(SLO_BOUNDS["window_s"])] | None = None

    @property
    def targets(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True, exclude={"service_class", "actor", "reason", "id", "op"})

    def check(self) -> None:
        """Raises SemipdError(`invalid_value`): a class other than `default` has targets only, and `default`
        must have some."""
        bounds = SLO_BOUNDS if self.service_class == DEFAULT_CLASS else TARGET_BOUNDS
        for name, value in self.targets.items():
            if name not in bounds:
                raise SemipdError(
                    "invalid_value",
                    f"{name} is one for all classes; the class {self.service_class[:80]!r} has "
                    f"{', '.join(TARGET_BOUNDS)}.",
                    f"Set {name} without service_class.",
                    param=name,
                )
            if not bounds[name].holds(value):
                message = f"{name} of the class {self.service_class} must be {bounds[name]}; got {value:g}."
                hint = f"Requests without it are those of another class, such as {BATCH_CLASS}."
                raise SemipdError("invalid_value", message, hint, param=name)


class PartitionSet(PartitionOverride, SocketRequest):
    pass


class PartitionClear(OperatorAction, SocketRequest):
    pass


class SloSet(SloUpdate, SocketRequest):
    pass


async def partition(state: DaemonState) -> PartitionDocument:
    return with_wall_times(await state.supervisor.ask(GetPartition), state.clock)


async def override(state: DaemonState, body: PartitionOverride, peer: str) -> ChangeAnswer:
    def question(nonce: int) -> SetPartition:
        return SetPartition(
            nonce,
            body.mode,
            body.actor or peer,
            body.reason,
            body.prefill_units,
            body.decode_units,
            body.expires_s,
            body.dry_run,
        )

    return with_wall_times(await state.supervisor.ask(question), state.clock)


async def clear_override(state: DaemonState, body: OperatorAction, peer: str) -> ChangeAnswer:
    """Back to auto."""
    actor = body.actor or peer
    answer = await state.supervisor.ask(lambda nonce: SetPartition(nonce, "auto", actor, body.reason))
    return with_wall_times(answer, state.clock)


async def slo(state: DaemonState) -> SloAnswer:
    return _levels(state, await state.supervisor.ask(lambda nonce: SetSlo(nonce, {}, "")))


async def update_slo(state: DaemonState, body: SloUpdate, peer: str) -> SloAnswer:
    """For requests to come, and for those under way that have brought no targets of their own."""
    body.check()
    actor, name = body.actor or peer, body.service_class
    if name == DEFAULT_CLASS:
        document = await state.supervisor.ask(lambda nonce: SetSlo(nonce, body.targets, actor, body.reason))
        return _levels(state, document)
    before = state.classes.targets(name)
    after = Targets.of(body.targets, before)
    if after != before:
        await state.supervisor.ask(lambda nonce: SetClass(nonce, name, before, after, actor, body.reason))
    return await slo(state)


def _levels(state: DaemonState, document: SloDocument) -> SloAnswer:
    return {**state.slo.snapshot(state.classes.targets), **document}


async def get_partition(services: Services, _request: web.Request) -> PartitionDocument:
    return await partition(services)


async def put_partition(services: Services, request: web.Request) -> ChangeAnswer:
    body = parsed_body(PartitionOverride, await request.read())
    return await override(services, body, http_peer(request))


async def delete_partition(services: Services, request: web.Request) -> ChangeAnswer:
    body = parsed_body(OperatorAction, await request.read() or b"{}")
    return await clear_override(services, body, http_peer(request))


async def get_slo(services: Services, _request: web.Request) -> SloAnswer:
    return await slo(services)


async def patch_slo(services: Services, request: web.Request) -> SloAnswer:
    body = parsed_body(SloUpdate, await request.read())
    return await update_slo(services, body, http_peer(request))
