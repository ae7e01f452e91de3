"""The demo's time: it stands still but for `move_to`, and things are done when they are due."""

import heapq
from collections.abc import Callable

from semipd.system.clock import Clock

START_NS = 10**9
"""Monotonic time at the beginning: records take 0 for "not yet"."""


class Timeline:
    """Nanoseconds of a monotonic clock that begins at START_NS; `began_s` is its Unix time then."""

    def __init__(self, began_s: float) -> None:
        self.now_ns = START_NS
        self._wall_offset_ns = round(began_s * 1e9) - START_NS
        self.clock = Clock(lambda: self.now_ns, lambda: self.clock.wall_s(self.now_ns), self._wall_offset_ns)
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._num_planned = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return (self.now_ns - START_NS) / 1e9

    @property
    def next_ns(self) -> int | None:
        """When the next thing is due."""
        return self._due[0][0] if self._due else None

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """So long after the beginning, or now if that has passed; in the order in which they were planned."""
        self._num_planned += 1
        at_ns = max(START_NS + round(seconds * 1e9), self.now_ns)
        heapq.heappush(self._due, (at_ns, self._num_planned, do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.seconds + seconds, do)

    def every(self, seconds: float, do: Callable[[], None]) -> None:
        """From now on."""

        def again() -> None:
            do()
            self.after(seconds, again)

        self.after(0.0, again)

    def move_to(self, at_ns: int) -> None:
        """Do what is due by then; all of it was planned before, or is planned meanwhile."""
        assert at_ns >= self.now_ns, f"time goes back from {self.now_ns} to {at_ns}"
        while self._due and self._due[0][0] <= at_ns:
            self.now_ns, _, do = heapq.heappop(self._due)
            do()
        self.now_ns = at_ns
