"""A time limit shared by many measurements."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """`allows` is false once a piece as long as the longest so far would not end in time."""

    limit_s: float
    clock: Callable[[], float]
    _began_s: float = 0.0
    _longest_s: float = 0.0

    def __post_init__(self) -> None:
        self._began_s = self.clock()

    @property
    def used_s(self) -> float:
        return self.clock() - self._began_s

    @property
    def left_s(self) -> float:
        return max(0.0, self.limit_s - self.used_s)

    def allows(self) -> bool:
        return self.used_s + self._longest_s <= self.limit_s

    def spent(self, seconds: float) -> None:
        """A piece took so long."""
        self._longest_s = max(self._longest_s, seconds)
