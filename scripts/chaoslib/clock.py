"""Time as the daemon under test has it: what the machine gives to others does not count against it."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from semipd.system.patience import GrantedTime
from semipd.system.process_usage import ProcessUsage, process_usage, tree_usage

LOOK_EVERY_S = 0.2

T = TypeVar("T")


class MachineClock:
    """Looks when it is asked. A process that was stopped waits for no core: its time counts in full."""

    def __init__(self, usage: Callable[[], ProcessUsage]) -> None:
        """`usage`: of the daemon's processes so far."""
        self._usage = usage
        self._granted = GrantedTime()
        self._began_s = self._looked_s = time.monotonic()
        self._seen = usage()

    @property
    def now_s(self) -> float:
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._look()
        return self._granted.seconds

    def _look(self) -> None:
        before, self._seen = self._seen, self._usage()
        elapsed_s, self._looked_s = time.monotonic() - self._looked_s, time.monotonic()
        self._granted.passed(elapsed_s, self._seen.since(before))

    def share(self) -> str:
        """For people: how much of the time counted."""
        return f"{self.now_s:.0f} of {time.monotonic() - self._began_s:.0f} s"

    async def within(self, limit_s: float, doing: Awaitable[T]) -> T:
        """What it returns or raises; TimeoutError when that takes longer."""
        task, due_s = asyncio.ensure_future(doing), self.now_s + limit_s
        try:
            while not (await asyncio.wait([task], timeout=1.25 * LOOK_EVERY_S))[0]:
                if self.now_s > due_s:
                    raise TimeoutError
            return task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def usage_with_ours(daemon_pid: int) -> ProcessUsage:
    """The daemon's processes; and ourselves, because the clients are here, without the busy loops."""
    return ProcessUsage.of([tree_usage(daemon_pid), process_usage(os.getpid())])
