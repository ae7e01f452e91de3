"""How long a test waits for what must happen: seconds of a machine that has nothing else to do."""

import os
import time
from pathlib import Path

LOOK_S = 1.0
"""Between two looks so much counts at most: who was stopped himself accuses nobody when he wakes up."""

LEAST_SHARE = 0.05


class Patience:
    """Time counts less on a busy machine: by the share of a core that a process which wants one can have."""

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s
        self._seen_s = time.monotonic()

    def is_over(self) -> bool:
        now_s = time.monotonic()
        self._left_s -= min(now_s - self._seen_s, LOOK_S) * share_of_a_core()
        self._seen_s = now_s
        return self._left_s <= 0


def share_of_a_core() -> float:
    """Of a process that is ready to run, now or within the last minute, whichever is less."""
    cores = len(os.sched_getaffinity(0))
    return max(LEAST_SHARE, min(1.0, cores / max(_num_running(), os.getloadavg()[0], 1.0)))


def _num_running() -> int:
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
