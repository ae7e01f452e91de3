"""The demo as a source: no daemon needed, and everything an operator may do has its effect."""

import asyncio
import time
from collections.abc import AsyncGenerator

from semipd_top.demo.world import DemoWorld
from semipd_top.sources.contract import Item, Operator

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
        self._began: float | None = None

    @property
    def operator(self) -> Operator:
        return self.world.operator

    def now_s(self) -> float:
        if not self._paced or self._began is None:
            return self.world.at_s
        return self.world.began_s + self._skip_s + time.monotonic() - self._began

    async def items(self) -> AsyncGenerator[Item, None]:
        """For ever."""
        seen = self.world.advance(self._skip_s)
        self._began = due = time.monotonic()
        while True:
            yield seen
            due += self.interval_s
            if self._paced:
                # late, when whoever watches was slow: then the story catches up
                await asyncio.sleep(max(due - time.monotonic(), 0.0))
            seen = self.world.advance(self.interval_s)
