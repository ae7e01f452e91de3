"""The drain: new work is refused, what runs may finish within a deadline, and everybody can see it.

    serving ──begin──▶ draining ──all finished, or deadline──▶ drained
       ▲                  │                                       │
       └──────cancel──────┴───────────────cancel──────────────────┘

A drain that ends the daemon (`stops`) cannot be cancelled.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from semipd.core.errors import SemipdError
from semipd.core.events import DrainStage
from semipd.core.state.daemon import DrainState
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.table import RequestTable
from semipd.system.clock import SYSTEM_CLOCK, Clock

log = logging.getLogger(__name__)

POLL_S = 0.05
REPORT_S = 5.0
"""How often the log says what is awaited."""

DRAINED_RETRY_S = 30.0
"""What a drained daemon tells those who ask when to come again: nobody knows when it will serve."""

MAX_LIMIT_S = 86_400.0


@dataclass(slots=True)
class _Plan:
    began_s: float
    limit_s: float
    deadline_s: float
    actor: str
    reason: str
    stops: bool
    num_ended: int = 0


class Drain:
    """`on_drained` is called when a drain that stops the daemon is over."""

    def __init__(
        self,
        table: RequestTable,
        limit_s: float = 30.0,
        on_drained: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.state: DrainStage = "serving"
        self._table = table
        self._limit_s = limit_s
        self._on_drained = on_drained
        self._clock = clock
        self._report_s = 0.0
        self._plan: _Plan | None = None
        self._begun = asyncio.Event()

    @property
    def stops(self) -> bool:
        return self._plan is not None and self._plan.stops

    @property
    def why(self) -> str:
        return "" if self._plan is None else f"{self._plan.actor} asked for it"

    @property
    def seconds_left(self) -> float | None:
        return None if self._plan is None else max(self._plan.deadline_s - self._clock.monotonic_s(), 0.0)

    def begin(
        self, actor: str, reason: str = "", limit_s: float | None = None, *, stops: bool = False
    ) -> None:
        """Returns at once. A second call sets a new deadline; what stops the daemon goes on doing so."""
        now_s = self._clock.monotonic_s()
        limit_s = self._limit_s if limit_s is None else limit_s
        before = self._plan
        self._plan = _Plan(now_s, limit_s, now_s + limit_s, actor, reason, stops or self.stops)
        if before is not None:
            self._plan.began_s, self._plan.num_ended = before.began_s, before.num_ended
        self.state = "draining"
        self._report_s = now_s + REPORT_S
        self._begun.set()
        because = f" ({reason})" if reason else ""
        what = "stopping" if self._plan.stops else "draining"
        log.info("%s, asked by %s%s: %s", what, actor, because, self._awaited())
        self._tell("stopping" if self._plan.stops else "draining", self._plan)

    def cancel(self, actor: str, reason: str = "") -> bool:
        """Serve again. False: there was nothing to cancel. Raises SemipdError(`shutting_down`)."""
        if self.stops:
            message = "The daemon is stopping; that cannot be taken back."
            raise SemipdError("shutting_down", message, "Start it again when it has ended.")
        plan, self._plan = self._plan, None
        self._begun.clear()
        self.state = "serving"
        if plan is None:
            return False
        log.info("serving again, asked by %s", actor)
        self._tell("serving", replace(plan, actor=actor, reason=reason))
        return True

    def check(self, *, for_operators: bool = False) -> None:
        """Raises SemipdError(`draining`), which carries when to come again. Operators are told what is
        awaited."""
        if self._plan is None:
            return
        left_s = self.seconds_left or 0.0
        after_s = max(left_s, 1.0) if self.state == "draining" else DRAINED_RETRY_S
        what = (
            "is stopping" if self._plan.stops else "is drained" if self.state == "drained" else "is draining"
        )
        raise SemipdError(
            "draining",
            f"The daemon {what} and takes no new requests{f': {self._awaited()}' if for_operators else ''}.",
            "Send the request to another server, or again later.",
            retry_after_s=after_s,
        )

    def to_wire(self) -> DrainState:
        oldest_ns = self._table.oldest_arrival_ns()
        plan = self._plan
        return {
            "state": "stopping" if self.stops else self.state,
            "awaited": len(self._table),
            "oldest_ms": None if oldest_ns is None else (self._clock.monotonic_ns() - oldest_ns) / 1e6,
            "seconds_left": self.seconds_left if self.state == "draining" else None,
            "ended": plan.num_ended if plan else 0,
            "actor": plan.actor if plan else None,
            "reason": plan.reason if plan else None,
        }

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While inside, a drain that was begun comes to its end."""
        task = asyncio.create_task(self._watch(), name="drain")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _watch(self) -> None:
        while True:
            await self._begun.wait()
            while self._begun.is_set():
                self.turn()
                await asyncio.sleep(POLL_S)

    def turn(self) -> None:
        """To be called every POLL_S: ends the drain when nothing runs any more, or its time is up."""
        plan, now_s = self._plan, self._clock.monotonic_s()
        if plan is None or self.state == "drained":
            return
        if len(self._table) and now_s < plan.deadline_s:
            if now_s >= self._report_s:
                log.info("waiting: %s", self._awaited())
                self._report_s += REPORT_S
            return
        plan.num_ended += self._table.fail_all(lambda live: _ended(live, now_s - plan.began_s))
        self.state = "drained"
        self._begun.clear()
        log.info("drained: %d requests had to be ended", plan.num_ended)
        self._tell("drained", plan)
        if plan.stops:
            self._on_drained()

    def _tell(self, state: DrainStage, plan: _Plan) -> None:
        """`plan`: what holds, or has just ended."""
        self._table.history.drain_changed(
            {
                "state": state,
                "actor": plan.actor,
                "reason": plan.reason,
                "limit_s": plan.limit_s,
                "awaited": len(self._table),
                "ended": plan.num_ended,
            }
        )

    def _awaited(self) -> str:
        oldest_ns, left_s = self._table.oldest_arrival_ns(), self.seconds_left or 0.0
        if oldest_ns is None:
            return "nothing runs"
        age_s = (self._clock.monotonic_ns() - oldest_ns) / 1e9
        return f"{len(self._table)} requests run, the oldest for {age_s:.1f} s; {left_s:.1f} s are left"


def _ended(live: LiveRequest, after_s: float) -> SemipdError:
    return SemipdError(
        "drain_deadline",
        f"The daemon drained for {after_s:.1f} s and then ended the request, "
        f"after {len(live.tokens)} tokens.",
        "What was generated is in this answer. Send the request to another server.",
        retry_after_s=DRAINED_RETRY_S,
    )
