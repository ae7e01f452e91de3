"""Time limits on a peer that count only while our own loop runs.

A daemon or a client that was stopped, or that got no time on a busy machine, must not wake up to accuse its
peer, whose bytes have been there all along.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

NUM_SLICES = 10

LOOK_S = 0.05
"""Between the end of the time and the judgement: so long the loop reads what has arrived."""


class OwnTimer:
    """Calls `when_over` once, unless it is cancelled before. A stall of the loop, however long, counts as a
    tenth of the limit at most."""

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


class OwnTime:
    """An async context manager like asyncio.timeout, over an OwnTimer: raises TimeoutError."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        loop = asyncio.get_running_loop()
        self._timer = OwnTimer(loop, self._limit_s, lambda: self._scope.reschedule(loop.time()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)
