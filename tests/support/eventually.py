"""Waiting for what must happen, whenever that is."""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 40.0


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {LIMIT_S:g} s: {what}"
        await asyncio.sleep(0.01)


def eventually_now(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """For tests without an event loop."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)
