"""A made-up daemon as a source: no other is needed, and everything an operator may do has its effect."""

import asyncio
import time
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any, Protocol

from semipd.core.state.requests import RequestRow
from semipd.wire.client_protocol import StateFrame
from semipd_top.sources.contract import REQUEST_ROWS, Item, Operator, Seen

DEFAULT_SEED = 7
ROWS_EVERY_S = 1.0
"""Requests are listed so often, as of a live daemon."""

WORLD = "semipd.sim.demo.world"
"""Loaded by name: the dashboard depends on nothing but the wire."""


class World(Protocol):
    """A daemon that lives while somebody lets its time pass. `at_s`: Unix time."""

    @property
    def at_s(self) -> float: ...

    @property
    def operator(self) -> Operator: ...

    def advance(self, seconds: float) -> None: ...

    def frame(self) -> StateFrame: ...

    def rows(self, limit: int) -> list[RequestRow]: ...


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
        self._began_s = time.time() - skip_s if began_s is None else began_s
        self.world: World = _world(seed, self._began_s)
        self._skip_s = skip_s
        self._paced = paced
        self._started_s: float | None = None
        self._rows_due_s = self._began_s

    @property
    def operator(self) -> Operator:
        return self.world.operator

    def now_s(self) -> float:
        if not self._paced or self._started_s is None:
            return self.world.at_s
        return self._began_s + self._skip_s + time.monotonic() - self._started_s

    def advance(self, seconds: float) -> Seen:
        """What is seen after so long."""
        world = self.world
        world.advance(seconds)
        rows = None
        if world.at_s >= self._rows_due_s - 1e-6:
            self._rows_due_s = world.at_s + ROWS_EVERY_S
            rows = world.rows(REQUEST_ROWS)
        return Seen(world.at_s, world.frame(), rows)

    async def items(self) -> AsyncGenerator[Item, None]:
        """For ever."""
        seen = self.advance(self._skip_s)
        self._started_s = due_s = time.monotonic()
        while True:
            yield seen
            due_s += self.interval_s
            if self._paced:
                # late, when whoever watches was slow: then the story catches up
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            seen = self.advance(self.interval_s)


def _world(seed: int, began_s: float) -> Any:
    return import_module(WORLD).DemoWorld(seed, began_s)
