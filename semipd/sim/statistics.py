"""Means of a few seeds and how sure they are.

The interval is Student's t at 95 % over the seeds: with three to ten of them the spread itself is
uncertain, which a normal interval ignores and a bootstrap of so few values cannot show. Ratios are paired:
all policies see the same arrivals of a seed, so what a seed makes easier for both cancels. They are averaged
as logarithms, so that the ratio of A to B is the inverse of that of B to A.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, 97.5 %, by degrees of freedom from 1 to 10."""

_Z_975 = 1.959964


class Interval(NamedTuple):
    """A mean and the bounds of its interval at 95 %; of one value they are infinite."""

    mean: float
    low: float
    high: float

    def as_ratio(self) -> str:
        """ "1.07x [1.02, 1.13]"; without bounds where one value leaves them open, or where they are equal."""
        bounded = math.isfinite(self.high) and self.low < self.high
        return f"{self.mean:.2f}x" + (f" [{self.low:.2f}, {self.high:.2f}]" if bounded else "")


def t_quantile(degrees: int) -> float:
    """Of Student's t at 97.5 %; above 10 degrees by its expansion around the normal one (error < 0.1 %)."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def interval(values: Sequence[float]) -> Interval:
    """Of the mean. The values must not be empty."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def geometric(values: Sequence[float]) -> Interval:
    """Of the geometric mean of values above 0."""
    mean, low, high = interval([math.log(value) for value in values])
    return Interval(math.exp(mean), math.exp(low), _exp(high))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float] | None:
    """Per seed; None where one of them has a 0: nothing is so many times better than nothing."""
    pairs = list(zip(ours, theirs, strict=True))
    return [a / b for a, b in pairs] if pairs and all(a > 0 and b > 0 for a, b in pairs) else None


def mean_ratios(rows: Iterable[list[float] | None]) -> list[float]:
    """Ratios of several scenarios, seed by seed, to their geometric means. What has none is left out; nothing
    left: an empty list."""
    known = [row for row in rows if row is not None]
    return [math.exp(statistics.fmean(map(math.log, seed))) for seed in zip(*known, strict=True)]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
