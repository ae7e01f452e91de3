"""Memory given back to the system after big work: the C library keeps what was freed. And what garbage
collection need not look at."""

import asyncio
import ctypes
import gc
from collections.abc import Callable

TRIM_DELAY_S = 1.0
"""From big work to the trimming; what comes meanwhile shares it."""

BIG_BYTES = 2**20
"""From this size on it is worth it."""


def freeze_heap() -> None:
    """What a start has left stays, and needs no looking through by each full garbage collection, which holds
    the event loop: some 20 ms."""
    gc.freeze()


class HeapTrimmer:
    """`trim` is the C library's; without one nothing is done."""

    def __init__(self, trim: Callable[[int], int] | None = None) -> None:
        self._trim = trim or getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._timer: asyncio.TimerHandle | None = None

    def note(self, num_bytes: int) -> None:
        """So much was allocated, and will be free soon."""
        if num_bytes < BIG_BYTES or self._timer is not None or self._trim is None:
            return
        self._timer = asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._begin)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._timer = None
        assert self._trim is not None
        # a call through ctypes releases the GIL
        asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
