"""The demo as a source: no daemon needed, and everything an operator may do has its effect."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from semipd.core.errors import SemipdError
from semipd_top.demo_wishes import ACT_FIELDS, PARTITION_FIELDS, SLO_FIELDS, check_listing, checked
from semipd_top.demo_world import DemoWorld
from semipd_top.source import Item, Operator, Seen

ACTOR = "you (demo)"
LISTED = 100
DEFAULT_SEED = 7


class DemoSource:
    """`paced`: in real time; else as fast as items are taken, and the time is the demo's own. `skip_s`: begin
    so far into the story."""

    title = "demo"
    why_read_only = ""

    def __init__(
        self,
        interval_s: float = 0.5,
        seed: int = DEFAULT_SEED,
        *,
        paced: bool = True,
        skip_s: float = 0.0,
        began_s: float | None = None,
    ) -> None:
        """`began_s`: Unix time at which the story begins; None: so that the first frame is of now."""
        self.interval_s = interval_s
        self.world = DemoWorld(seed, time.time() - skip_s if began_s is None else began_s)
        self._skip_s = skip_s
        self._paced = paced
        self._operator = DemoOperator(self.world)
        self._began: float | None = None

    @property
    def operator(self) -> Operator:
        return self._operator

    def now_s(self) -> float:
        if not self._paced or self._began is None:
            return self.world.at_s
        return self.world.began_s + self._skip_s + time.monotonic() - self._began

    async def items(self) -> AsyncGenerator[Item, None]:
        """For ever."""
        seen = self._first()
        self._began = due = time.monotonic()
        while True:
            yield seen
            due += self.interval_s
            if self._paced:
                # late, when whoever watches was slow: then the story catches up
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
            seen = self.world.advance(self.interval_s)

    def _first(self) -> Seen:
        """With what has happened until then."""
        return self.world.advance(self._skip_s)


class DemoOperator:
    """Answers and refuses as a daemon does."""

    def __init__(self, world: DemoWorld) -> None:
        self._world = world

    async def partition(self) -> dict[str, Any]:
        self._check_ready()
        return self._world.control.full_status(self._slo())

    async def set_partition(self, **wish: Any) -> dict[str, Any]:
        given = {"mode": "fixed", "actor": ACTOR, "reason": ""} | checked(wish, PARTITION_FIELDS)
        self._check_ready()
        world = self._world
        answer = world.control.set(world.now, given, world.work(), world.is_shared)
        world.history.journal.publish()
        return answer

    async def clear_partition(self, **act: Any) -> dict[str, Any]:
        return await self.set_partition(mode="auto", **checked(act, ACT_FIELDS))

    async def slo(self) -> dict[str, Any]:
        self._check_ready()
        return self._slo()

    async def set_slo(self, **wish: Any) -> dict[str, Any]:
        given = {"actor": ACTOR, "reason": ""} | checked(wish, SLO_FIELDS)
        self._check_ready()
        world = self._world
        world.control.set_targets(world.now, given, world.history.slo.targets)
        world.history.journal.publish()
        return self._slo()

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[dict[str, Any]]:
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

    def _slo(self) -> dict[str, Any]:
        slo = self._world.history.slo
        return {"targets": dict(slo.targets), "observed": self._world.history.observed(self._world.now)}

    def _check_ready(self) -> None:
        if self._world.engine is None:
            raise SemipdError(
                "engine_not_ready", self._world.why_not_ready(), "Send the request again later."
            )
