"""The demo's operator: what a daemon would answer and refuse, and it has its effect."""

from typing import TYPE_CHECKING, Any

from semipd.core.errors import SemipdError
from semipd_top.demo.wishes import ACT_FIELDS, PARTITION_FIELDS, SLO_FIELDS, check_listing, checked

if TYPE_CHECKING:
    from semipd_top.demo.world import DemoWorld

ACTOR = "you (demo)"
LISTED = 100


class DemoOperator:
    """Answers and refuses as a daemon does."""

    def __init__(self, world: "DemoWorld") -> None:
        self._world = world

    async def partition(self) -> Any:
        self._check_ready()
        return self._world.control.full_status(self._slo())

    async def set_partition(self, **wish: Any) -> Any:
        given = {"mode": "fixed", "actor": ACTOR, "reason": ""} | checked(wish, PARTITION_FIELDS)
        self._check_ready()
        world = self._world
        answer = world.control.set(world.now, given, world.work(), world.is_shared)
        world.history.journal.publish(world.now)
        return answer

    async def clear_partition(self, **act: Any) -> Any:
        return await self.set_partition(mode="auto", **checked(act, ACT_FIELDS))

    async def slo(self) -> Any:
        self._check_ready()
        return self._slo()

    async def set_slo(self, **wish: Any) -> Any:
        given = {"actor": ACTOR, "reason": ""} | checked(wish, SLO_FIELDS)
        self._check_ready()
        world = self._world
        world.control.set_targets(world.now, given, world.history.slo.targets)
        world.history.journal.publish(world.now)
        return self._slo()

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> Any:
        check_listing(state, limit)
        history, now = self._world.history, self._world.now
        if request_id is None:
            return history.rows(now, state, LISTED if limit is None else limit)
        return [
            request.to_row(history.began_s, now) | {"events": list(request.timeline)}
            for request in history.named(request_id)
        ]

    async def cancel_request(self, request_id: str) -> str:
        return self._world.cancel(request_id)

    def _slo(self) -> Any:
        slo = self._world.history.slo
        return {"targets": dict(slo.targets), "observed": self._world.history.observed(self._world.now)}

    def _check_ready(self) -> None:
        if self._world.engine is None:
            raise SemipdError(
                "engine_not_ready", self._world.why_not_ready(), "Send the request again later."
            )
