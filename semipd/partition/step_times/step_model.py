"""The time of one phase's steps, fitted while they run.

    t(units, x) = sum over j of x[j] (c[j] + d[j] / units),    c, d >= 0

x is what the step did, x[0] = 1. Least squares of relative errors (each step weighs 1 / t^2, so that short
and long steps count alike), c and d non-negative. The sums behind the normal equations are kept per *cell*:
a number of units and a size class of the work. A new step makes only its own cell forget, by `FORGETTING`:
weeks on one split do not wash out what was learned on another, as one forgetting factor for everything
would (the "wind-up" of recursive least squares), and a change of speed is still followed where it is seen.
Two ratios of observed to predicted time correct the fit: one per number of units, from the cells (hardware
is not exactly linear in 1/units), and a running one over the last steps (contention, clocks).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import mul
from typing import Any

from semipd.partition.step_times.nnls import solve_nonnegative

FORGETTING = 0.98
"""A cell remembers about its last 50 steps."""

CONFIDENT_STEPS = 32
TRIED_WEIGHT = 6.0
"""Steps on a number of units, or in a cell, before predictions there count as tried."""

RIDGE = 1e-6
"""Pull towards the previous coefficients, relative to the data: decides only what the data leave open."""

RATIO_PRIOR_STEPS = 8.0
RUNNING_GAIN = 0.1
RATIO_LIMITS = (0.2, 5.0)
"""A single step may be held up by anything; it moves the running ratio by no more than this."""

Cell = tuple[int, int]
"""Of one number of units: size class of x[1] (factors of 2), size class of x[2] (factors of 4)."""

Place = tuple[int, int]
"""Power of 1 / units, index of `Sums`."""

Sums = list[float]
"""Over a cell's steps, each weighed by 1 / t^2: the number of steps, then of x[0] t, x[1] t, ..., then of
the products x[i] x[j] with i <= j, row by row."""


@dataclass(slots=True)
class StepModel:
    """`num_features`: length of x. `scales`: whether d is fitted; if not, all steps run on the same units."""

    num_features: int
    scales: bool = True
    num_steps: int = 0
    running_ratio: float = 1.0
    error: float = 0.0  # running mean of |observed / predicted - 1|
    _cells: dict[int, dict[Cell, Sums]] = field(default_factory=dict)  # by units
    _totals: dict[int, Sums] = field(default_factory=dict)  # of all units without a new step
    _pairs: list[tuple[int, int]] = field(default_factory=list)
    _coefficients: list[float] = field(default_factory=list)
    _ratios: dict[int, float] = field(default_factory=dict)
    _weights: dict[int, float] = field(default_factory=dict)
    _lines: dict[int, list[float]] = field(default_factory=dict)
    _num_fitted: int = 0
    _gram_places: list[list[Place]] = field(init=False)
    _target_places: list[Place] = field(init=False)

    def __post_init__(self) -> None:
        n = self.num_features
        size = 2 * n if self.scales else n
        self._coefficients = [0.0] * size
        self._pairs = [(i, j) for i in range(n) for j in range(i, n)]
        place = {pair: 1 + n + k for k, pair in enumerate(self._pairs)}
        self._gram_places = [
            [(i // n + j // n, place[min(i % n, j % n), max(i % n, j % n)]) for j in range(size)]
            for i in range(size)
        ]
        self._target_places = [(i // n, 1 + i % n) for i in range(size)]

    @property
    def confident(self) -> bool:
        return self._num_fitted >= CONFIDENT_STEPS

    @property
    def stale(self) -> bool:
        """Steps have come since the last fit."""
        return self.num_steps > self._num_fitted

    @property
    def coefficients(self) -> list[float]:
        """c, then d (if fitted), in milliseconds per unit of x and milliseconds x units per unit of x."""
        return list(self._coefficients)

    def observe(self, units: int, x: tuple[float, ...], ms: float) -> float | None:
        """Learn from a step. Returns what had been predicted for it; None while not confident, or while too
        few steps of its size have been seen on so many units."""
        predicted = None
        if self.confident:
            predicted = sum(map(mul, self._line(units), x)) * self.running_ratio
            if predicted > 0:
                self._correct(ms / predicted)
        num_alike = self._remember(units, x, ms)
        self.num_steps += 1
        return predicted if num_alike >= TRIED_WEIGHT else None

    def line(self, units: int) -> list[float]:
        """Corrected milliseconds per unit of each x on `units`."""
        running = self.running_ratio
        return [value * running for value in self._line(units)]

    def fit(self) -> None:
        """Solve for the coefficients anew. Costs about a tenth of a millisecond: not for every step."""
        totals = self._sums_by_units()
        gram, target = self._normal_equations(totals)
        for i, row in enumerate(gram):
            pull = RIDGE * row[i]
            row[i] += pull
            target[i] += pull * self._coefficients[i]
        self._coefficients = solve_nonnegative(gram, target, self._coefficients)
        self._note_units(totals)
        self._num_fitted = self.num_steps

    def smallest_tried(self) -> int | None:
        return min((u for u, weight in self._weights.items() if weight >= TRIED_WEIGHT), default=None)

    def _line(self, units: int) -> list[float]:
        """Without the running ratio."""
        line = self._lines.get(units)
        if line is None:
            ratio = self._ratio(units)
            self._lines[units] = line = [value * ratio for value in self._raw_line(units)]
        return line

    def _correct(self, ratio: float) -> None:
        low, high = RATIO_LIMITS
        ratio = min(max(ratio * self.running_ratio, low), high)
        self.error += RUNNING_GAIN * (abs(ratio / self.running_ratio - 1) - self.error)
        self.running_ratio += RUNNING_GAIN * (ratio - self.running_ratio)

    def _remember(self, units: int, x: tuple[float, ...], ms: float) -> float:
        """Returns the weight of its cell before."""
        y = [value / ms for value in x]
        new = [1.0, *y, *[y[i] * y[j] for i, j in self._pairs]]
        cell = (int(x[1]).bit_length(), (int(x[2]).bit_length() + 1) // 2)
        cells = self._cells.get(units)
        if cells is None:
            cells = self._cells[units] = {}
        self._totals.pop(units, None)
        old = cells.get(cell)
        if old is not None:
            new = [FORGETTING * was + now for was, now in zip(old, new)]  # noqa: B905 (strict costs time here)
        cells[cell] = new
        return 0.0 if old is None else old[0]

    def _raw_line(self, units: int) -> list[float]:
        if not self.scales:
            return self._coefficients
        half = self.num_features
        flat, shared = self._coefficients[:half], self._coefficients[half:]
        return [c + d / units for c, d in zip(flat, shared, strict=True)]

    def _ratio(self, units: int) -> float:
        """Of the nearest number of units that was seen."""
        if not self._ratios:
            return 1.0
        return self._ratios[min(self._ratios, key=lambda seen: (abs(seen - units), seen))]

    def _sums_by_units(self) -> dict[int, Sums]:
        known = self._totals
        self._totals = {
            units: known.get(units) or list(map(sum, zip(*cells.values(), strict=True)))
            for units, cells in self._cells.items()
        }
        return self._totals

    def _note_units(self, totals: dict[int, Sums]) -> None:
        """Weight and observed / predicted per number of units, with some belief in the fit."""
        self._lines.clear()
        self._ratios.clear()
        self._weights = {units: sums[0] for units, sums in totals.items()}
        for units, (weight, *sums) in totals.items():
            predicted = sum(map(mul, self._raw_line(units), sums))  # over observed, summed
            self._ratios[units] = (weight + RATIO_PRIOR_STEPS) / (predicted + RATIO_PRIOR_STEPS)

    def _normal_equations(self, totals: dict[int, Sums]) -> tuple[list[list[float]], list[float]]:
        """For c and d together: each sum enters with the powers 0, 1 and 2 of 1 / units."""
        moments = [[0.0] * (1 + self.num_features + len(self._pairs)) for _ in range(3)]
        for units, sums in totals.items():
            for power, moment in enumerate(moments):
                factor = units**-power
                moments[power] = [m + factor * value for m, value in zip(moment, sums)]  # noqa: B905 (as above)
        gram = [[moments[power][place] for power, place in row] for row in self._gram_places]
        return gram, [moments[power][place] for power, place in self._target_places]

    def to_plain(self) -> list[list[float]]:
        """One row per cell: its key, then its sums."""
        return [[units, *cell, *sums] for units, cells in self._cells.items() for cell, sums in cells.items()]

    def read_plain(self, rows: Any) -> dict[int, dict[Cell, Sums]]:
        """What `to_plain` gave. Raises ValueError on anything else."""
        cells: dict[int, dict[Cell, Sums]] = {}
        for units, first, second, *sums in _checked(rows, 4 + self.num_features + len(self._pairs)):
            if units < 1 or sums[0] <= 0:
                raise ValueError(f"a cell for {units} units has weight {sums[0]}")
            cells.setdefault(int(units), {})[int(first), int(second)] = sums
        return cells

    def adopt(self, cells: dict[int, dict[Cell, Sums]]) -> None:
        """Know these cells, instead of everything learned."""
        self._cells, self._totals = cells, {}
        self.num_steps = int(sum(sums[0] for alike in cells.values() for sums in alike.values()))
        self.fit()


def _checked(rows: Any, length: int) -> Iterator[list[float]]:
    if not isinstance(rows, list):
        raise ValueError(f"a list of cells is expected, not {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, list) or len(row) != length:
            raise ValueError(f"a cell has {length} numbers")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in row):
            raise ValueError("a cell holds something that is no finite number")
        yield [float(value) for value in row]
