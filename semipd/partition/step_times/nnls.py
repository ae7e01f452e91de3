"""Non-negative least squares on the normal equations, for a handful of unknowns."""

from operator import mul

Matrix = list[list[float]]

_TOLERANCE = 1e-9
"""Of a gradient, on a matrix scaled to a unit diagonal."""


def solve_nonnegative(gram: Matrix, target: list[float], start: list[float]) -> list[float]:
    """x >= 0 minimising x'Gx/2 - t'x for a positive definite G, from the feasible point `start`.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23): solve for
    the unknowns that are free, drop those that would become negative, free those whose gradient asks for it.
    Exact up to rounding; `start` only saves work.
    """
    scale = [gram[i][i] ** -0.5 if gram[i][i] > 0 else 0.0 for i in range(len(target))]
    scaled = [
        [g * si * sj for g, sj in zip(row, scale, strict=True)] for row, si in zip(gram, scale, strict=True)
    ]
    wanted = [t * s for t, s in zip(target, scale, strict=True)]
    x = [value / s if s else 0.0 for value, s in zip(start, scale, strict=True)]
    free = [i for i, value in enumerate(x) if value > 0]
    reach = _TOLERANCE * max(map(abs, wanted), default=0.0)
    for _ in range(3 * len(x)):
        free, x = _descend(scaled, wanted, free, x)
        slopes = [
            wanted[i] - sum(map(mul, scaled[i], x)) if scale[i] and i not in free else 0.0
            for i in range(len(x))
        ]
        steepest = max(range(len(x)), key=slopes.__getitem__)
        if slopes[steepest] <= reach:
            break
        free = [*free, steepest]
    return [value * s for value, s in zip(x, scale, strict=True)]


def _descend(
    gram: Matrix, target: list[float], free: list[int], x: list[float]
) -> tuple[list[int], list[float]]:
    """The minimum over the free unknowns that stays feasible, and which of them are still free."""
    while free:
        ideal = _solve([[gram[i][j] for j in free] for i in free], [target[i] for i in free])
        if min(ideal) > 0:
            return free, _spread(free, ideal, len(x))
        steps = [
            x[i] / (x[i] - v) if v <= 0 and x[i] > v else 0.0 if v <= 0 else 1.0
            for i, v in zip(free, ideal, strict=True)
        ]
        step = min(steps)
        moved = [x[i] + step * (v - x[i]) for i, v in zip(free, ideal, strict=True)]
        stuck = steps.index(step)
        kept = [k for k, value in enumerate(moved) if value > 0 and k != stuck]
        x = _spread([free[k] for k in kept], [moved[k] for k in kept], len(x))
        free = [free[k] for k in kept]
    return free, [0.0] * len(x)


def _solve(a: Matrix, b: list[float]) -> list[float]:
    """Gaussian elimination; a positive definite matrix needs no pivoting. Overwrites its arguments."""
    size = len(b)
    for i in range(size):
        for k in range(i + 1, size):
            factor = a[k][i] / a[i][i]
            for j in range(i, size):
                a[k][j] -= factor * a[i][j]
            b[k] -= factor * b[i]
    for i in reversed(range(size)):
        b[i] = (b[i] - sum(a[i][j] * b[j] for j in range(i + 1, size))) / a[i][i]
    return b


def _spread(places: list[int], values: list[float], size: int) -> list[float]:
    x = [0.0] * size
    for i, value in zip(places, values, strict=True):
        x[i] = value
    return x
