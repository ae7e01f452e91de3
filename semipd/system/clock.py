"""Two clocks in one: the monotonic one that durations are measured with, and the wall's, for people."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """The system's, unless another is given: a simulation has its own.

    `monotonic_ns`: CLOCK_MONOTONIC. `time_s`: Unix time. `wall_offset_ns` makes Unix time of a monotonic one;
    it is taken once, so that an event keeps its time however often it is asked for.
    """

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    time_s: Callable[[], float] = time.time
    wall_offset_ns: int = field(default_factory=lambda: time.time_ns() - time.monotonic_ns())

    def monotonic_s(self) -> float:
        return self.monotonic_ns() / 1e9

    def wall_s(self, at_ns: int) -> float:
        """Unix time of a monotonic one."""
        return (at_ns + self.wall_offset_ns) / 1e9


SYSTEM_CLOCK = Clock()
