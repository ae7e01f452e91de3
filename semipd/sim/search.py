"""The highest rate at which a policy keeps the wanted attainment: bisection on a grid of rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOWEST_RATE = 0.02
HIGHEST_RATE = 2000.0
FIRST_STRIDE = 4

Passes = Callable[[str, float], bool]
"""(policy, rate) to whether the policy keeps the wanted attainment there."""


@dataclass(slots=True)
class Bracket:
    """Grid points: the policy keeps its attainment at `low` (-1: nowhere) and loses it at `high`."""

    low: int
    high: int

    @property
    def width(self) -> int:
        return self.high - self.low


class RateGrid:
    """Rates LOWEST_RATE * (1 + step)^k: neighbours differ by the same share, and every policy is tried at
    the same rates."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.size = next(k for k in range(10**6) if self.rate(k) > HIGHEST_RATE)

    def rate(self, point: int) -> float:
        """0 below the grid."""
        return round(LOWEST_RATE * (1.0 + self.step) ** point, 6) if point >= 0 else 0.0

    def at(self, rate: float) -> int:
        """The grid point nearest below a rate."""
        return max(next(k for k in range(self.size + 1) if self.rate(k + 1) > rate), 0)


def bracket(policy: str, passes: Passes, grid: RateGrid, start: int, width: int) -> Bracket:
    """Gallop from `start` until the rate is enclosed, then bisect down to `width` grid points."""
    stride = max(FIRST_STRIDE, width)
    if passes(policy, grid.rate(start)):
        found = Bracket(start, grid.size)
        while found.low + stride < grid.size and passes(policy, grid.rate(found.low + stride)):
            found.low += stride
            stride *= 2
        found.high = min(found.low + stride, grid.size)
    else:
        found = Bracket(-1, start)
        while found.high - stride >= 0 and not passes(policy, grid.rate(found.high - stride)):
            found.high -= stride
            stride *= 2
        found.low = max(found.high - stride, -1)
    while found.width > width:
        halve(found, policy, passes, grid)
    return found


def halve(found: Bracket, policy: str, passes: Passes, grid: RateGrid) -> None:
    middle = (found.low + found.high) // 2
    if passes(policy, grid.rate(middle)):
        found.low = middle
    else:
        found.high = middle


def best_of(
    policies: Sequence[str], passes: Passes, grid: RateGrid, start: int, coarse: int
) -> dict[str, Bracket]:
    """Brackets of all members of a family, `coarse` grid points wide, but exact for the best one: whoever
    might still win is looked at more closely, the one with the most promise first."""
    found: dict[str, Bracket] = {}
    for policy in policies:
        found[policy] = bracket(policy, passes, grid, start, coarse)
        start = max(max(b.low for b in found.values()), 0)
    while True:
        best_low = max(b.low for b in found.values())
        open_ones = [p for p, b in found.items() if b.width > 1 and b.high > best_low + 1]
        if not open_ones:
            return found
        chosen = max(open_ones, key=lambda p: (found[p].high, found[p].low))
        halve(found[chosen], chosen, passes, grid)
