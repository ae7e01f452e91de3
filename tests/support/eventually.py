"""Waiting for what must happen, whenever that is. Limits are seconds of a quiet machine: support.patience."""

import asyncio
import time
from collections.abc import Callable

from support.patience import Patience

LIMIT_S = 40.0


async def eventually(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    patience = Patience(limit_s)
    while not condition():
        assert not patience.is_over(), f"not within {limit_s:g} s: {what}"
        await asyncio.sleep(0.01)


def eventually_now(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """For tests without an event loop."""
    patience = Patience(limit_s)
    while not condition():
        assert not patience.is_over(), f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)
