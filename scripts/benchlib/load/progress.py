"""How far a run is, on one line of a terminal."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchlib.load.load import LoadRun

BAR_CELLS = 30
REDRAW_S = 0.25


@asynccontextmanager
async def progress_bar(run: LoadRun) -> AsyncIterator[None]:
    """Redrawn on stderr while the body runs; nothing when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(_redraw(run), name="progress-bar")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        print(f"\r{progress_line(run)}", file=sys.stderr)


async def _redraw(run: LoadRun) -> None:
    while True:
        print(f"\r{progress_line(run)}", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(REDRAW_S)


def progress_line(run: LoadRun) -> str:
    total, sent = len(run.requests), len(run.records)
    over = sent - run.num_in_flight
    bad = sum(record.outcome != "ok" and record.end_s > 0 for record in run.records)
    filled = BAR_CELLS * over // total
    bar = "#" * filled + "." * (BAR_CELLS - filled)
    return f"[{bar}] {over}/{total} over, {run.num_in_flight:3d} in flight, {bad} not ok "
