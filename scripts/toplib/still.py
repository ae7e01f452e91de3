"""A source in which time stands still, and screenshots of the dashboard over it."""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from semipd_top.screen.app import TopApp
from semipd_top.sources.contract import Item, Operator
from textual.app import App
from textual.pilot import Pilot

from toplib.cells import cells

LIMIT_S = 30.0
LOOK_EVERY_S = 0.05
SAME = 2
"""A picture is taken when it has not changed for so many looks."""


class StillSource:
    """All items at once; then nothing more, and no time passes."""

    interval_s = 0.5
    why_read_only = ""
    title = "demo: made-up numbers"

    def __init__(self, items: Sequence[Item], now_s: float, operator: Operator) -> None:
        self._items = items
        self._now_s = now_s
        self._operator = operator
        self.told = asyncio.Event()

    @property
    def operator(self) -> Operator:
        return self._operator

    def now_s(self) -> float:
        return self._now_s

    async def items(self) -> AsyncGenerator[Item, None]:
        for item in self._items:
            yield item
        self.told.set()
        await asyncio.Event().wait()


def svg(app: App[Any]) -> str:
    return own_svg(app.export_screenshot())


async def screenshot(
    source: StillSource,
    size: tuple[int, int],
    *keys: str,
    theme: str = "textual-dark",
    draw: Callable[[App[Any]], str] = svg,
) -> str:
    """The dashboard after these keys, drawn as SVG or otherwise."""
    app = TopApp(source)
    app.theme = theme
    async with app.run_test(size=size) as pilot:
        await asyncio.wait_for(source.told.wait(), LIMIT_S)
        app.draw()
        for key in keys:
            await pilot.press(key)
            await _workers_end(pilot)
        await _steady(pilot)
        return draw(app)


async def _workers_end(pilot: Pilot[int]) -> None:
    """Those that a key starts: previews, questions to the operator. The source's and a dialog's own never
    end."""
    await pilot.pause()
    workers = [worker for worker in pilot.app.workers if worker.group not in ("source", "act")]
    if workers:
        await asyncio.wait_for(pilot.app.workers.wait_for_complete(workers), LIMIT_S)


async def _steady(pilot: Pilot[int]) -> None:
    """Until nothing is under way any more: dialogs are filled when they have their size, and the
    footer follows the focus."""
    before, same = "", 0
    async with asyncio.timeout(LIMIT_S):
        while same < SAME or not pilot.app.screen_stack[0].query("FooterKey"):
            await _workers_end(pilot)
            await asyncio.sleep(LOOK_EVERY_S)
            picture = cells(pilot.app)
            same, before = (same + 1 if picture == before else 0), picture


def own_svg(svg: str) -> str:
    """Without fonts from elsewhere, and without the number that Rich makes up for each picture."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"terminal-\d+", "terminal", svg)


@contextmanager
def in_utc() -> Iterator[None]:
    """Times of day are the same wherever a picture is made."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
