"""A timer for what a client owes us: it counts only while our own loop runs, as OwnTime does."""

import asyncio
from collections.abc import Callable

from semipd.wire.own_time import LOOK_S, NUM_SLICES


class OwnTimer:
    """Calls `when_over` once, unless it is cancelled before."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, when_over: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._slice_s = limit_s / NUM_SLICES
        self._num_left = NUM_SLICES
        self._when_over = when_over
        self._timer = loop.call_later(self._slice_s, self._slice_is_over)

    def cancel(self) -> None:
        self._timer.cancel()

    def _slice_is_over(self) -> None:
        self._num_left -= 1
        if self._num_left < 0:
            self._when_over()
            return
        delay_s = self._slice_s if self._num_left else LOOK_S
        self._timer = self._loop.call_later(delay_s, self._slice_is_over)
