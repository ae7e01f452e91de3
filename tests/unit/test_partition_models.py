"""Step-time models: coefficients found in noise, changes followed, nothing lost that is not seen anew."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.seeds import each_seed

from semipd.partition.interface import StepRecord
from semipd.partition.step_times.models import Models
from semipd.partition.step_times.nnls import solve_nonnegative
from semipd.partition.step_times.step_model import CONFIDENT_STEPS, StepModel

Point = tuple[float, ...]
Row = Sequence[float]
FLAT, SHARED = (2.0, 0.01, 1e-6), (20.0, 0.4, 4e-5)


def true_ms(units: int, x: Point, flat: Point = FLAT, shared: Point = SHARED) -> float:
    return sum(value * (c + d / units) for value, c, d in zip(x, flat, shared, strict=True))


def random_work(rng: random.Random) -> tuple[float, float, float]:
    tokens = rng.randint(1, 2048)
    return (1, tokens, tokens * (rng.randint(0, 4000) + tokens / 2))


def feed(
    model: StepModel, rng: random.Random, steps: int, units: list[int], noise: float, scale: float = 1.0
) -> None:
    for step in range(steps):
        on, x = rng.choice(units), random_work(rng)
        model.observe(on, x, scale * true_ms(on, x) * rng.lognormvariate(0, noise))
        if step % 50 == 49:
            model.fit()


def predict(model: StepModel, units: int, x: tuple[float, ...]) -> float:
    return sum(value * cost for value, cost in zip(x, model.line(units), strict=True))


def brute_force_nonnegative(gram: Sequence[Row], target: Row) -> list[float]:
    """Try every set of free unknowns; keep the feasible minimum."""
    size, best = len(target), ([0.0] * len(target), 0.0)
    for count in range(1, size + 1):
        for free in itertools.combinations(range(size), count):
            x = gauss([[gram[i][j] for j in free] for i in free], [target[i] for i in free])
            if x is None or min(x) < 0:
                continue
            full = [0.0] * size
            for i, value in zip(free, x, strict=True):
                full[i] = value
            cost = sum(
                full[i] * (sum(g * v for g, v in zip(gram[i], full, strict=True)) / 2 - target[i])
                for i in range(size)
            )
            if cost < best[1]:
                best = (full, cost)
    return best[0]


def gauss(matrix: Sequence[Row], right: Row) -> list[float] | None:
    """With pivoting; None when singular."""
    a = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(a)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(a[k][i]))
        a[i], a[pivot] = a[pivot], a[i]
        if abs(a[i][i]) < 1e-12:
            return None
        for k in range(size):
            if k != i:
                factor = a[k][i] / a[i][i]
                a[k] = [v - factor * w for v, w in zip(a[k], a[i], strict=True)]
    return [a[i][size] / a[i][i] for i in range(size)]


@each_seed(range(200))
def test_nonnegative_least_squares_against_every_active_set(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(1, 6)
    rows = [[rng.gauss(0, 1) * 10 ** rng.uniform(-2, 2) for _ in range(size)] for _ in range(size + 3)]
    values = [rng.gauss(0, 1) for _ in rows]
    gram = [[sum(r[i] * r[j] for r in rows) for j in range(size)] for i in range(size)]
    target = [sum(r[i] * v for r, v in zip(rows, values, strict=True)) for i in range(size)]
    start = [rng.choice([0.0, rng.random()]) for _ in range(size)]
    found = solve_nonnegative(gram, target, start)
    assert min(found) >= 0
    assert found == pytest.approx(brute_force_nonnegative(gram, target), rel=1e-5, abs=1e-7)


@each_seed(range(20))
def test_coefficients_are_recovered_exactly_without_noise(seed: int) -> None:
    model = StepModel(3)
    feed(model, random.Random(seed), 600, [16, 32, 64, 132], noise=0.0)
    assert model.coefficients == pytest.approx([*FLAT, *SHARED], rel=1e-4)
    assert model.error < 1e-6


@each_seed(range(20))
def test_noisy_steps_give_good_predictions_also_between_the_sizes_seen(seed: int) -> None:
    rng = random.Random(seed)
    model = StepModel(3)
    feed(model, rng, 2000, [16, 32, 64, 132], noise=0.05)
    model.running_ratio = 1.0  # judged apart: it follows the last few steps
    for units in (16, 24, 48, 100, 132):
        for _ in range(50):
            x = random_work(rng)
            assert predict(model, units, x) == pytest.approx(true_ms(units, x), rel=0.1)
    assert model.coefficients[0] == pytest.approx(FLAT[0], rel=0.3)
    assert model.coefficients[4] == pytest.approx(SHARED[1], rel=0.3)
    assert 0.02 < model.error < 0.1


@each_seed(range(10))
def test_a_change_of_speed_is_followed_at_once_and_then_learned(seed: int) -> None:
    """The running ratio answers within tens of steps; the coefficients follow, and the ratio comes back."""
    rng = random.Random(seed)
    model = StepModel(3)
    feed(model, rng, 1000, [32, 64], noise=0.02)
    feed(model, rng, 60, [32, 64], noise=0.02, scale=1.5)
    x = (1, 512, 512 * 256)
    assert predict(model, 32, x) == pytest.approx(1.5 * true_ms(32, x), rel=0.12)
    feed(model, rng, 6000, [32, 64], noise=0.02, scale=1.5)
    assert model.running_ratio == pytest.approx(1.0, abs=0.05)
    assert predict(model, 64, x) == pytest.approx(1.5 * true_ms(64, x), rel=0.05)


def test_long_work_on_one_size_does_not_wash_out_another() -> None:
    """Plain recursive least squares with one forgetting factor would lose the direction it no longer sees."""
    rng = random.Random(1)
    model = StepModel(3)
    feed(model, rng, 300, [16, 132], noise=0.02)
    feed(model, rng, 20_000, [132], noise=0.02)
    model.running_ratio = 1.0
    x = (1, 512, 512 * 256)
    assert predict(model, 16, x) == pytest.approx(true_ms(16, x), rel=0.05)


def test_coefficients_are_never_negative() -> None:
    """Time that falls with the work would do that to a plain fit."""
    rng = random.Random(2)
    model = StepModel(3)
    for _ in range(500):
        x = random_work(rng)
        model.observe(rng.choice([8, 64]), x, 100.0 / x[1] + 1)
    model.fit()
    assert min(model.coefficients) >= 0
    assert max(model.coefficients) > 0


def test_a_curve_that_is_not_linear_is_right_where_it_was_seen() -> None:
    """Flat above 24 units, as a bandwidth limit makes it: the ratio per size repairs what 1/units cannot."""
    rng = random.Random(3)
    model = StepModel(3)
    for step in range(3000):
        units, batch = rng.choice([8, 16, 24, 48, 96, 132]), rng.randint(1, 64)
        model.observe(units, (1, batch, 100 * batch), max(1.0, 24 / units) * (5 + 0.1 * batch))
        if step % 50 == 49:
            model.fit()
    model.running_ratio = 1.0
    for units in (8, 16, 24, 48, 132):
        assert predict(model, units, (1, 32, 3200)) == pytest.approx(max(1.0, 24 / units) * 8.2, rel=0.1)


def test_confidence_needs_steps_and_a_fit() -> None:
    model = StepModel(3)
    for _ in range(CONFIDENT_STEPS - 1):
        assert model.observe(8, (1, 10, 50), 5.0) is None
    model.fit()
    assert not model.confident
    model.observe(8, (1, 10, 50), 5.0)
    assert not model.confident
    model.fit()
    assert model.confident
    assert model.observe(8, (1, 10, 50), 5.0) == pytest.approx(5.0, rel=1e-3)
    assert model.smallest_tried() == 8


def test_one_stall_hardly_moves_the_prediction() -> None:
    model = StepModel(3)
    for _ in range(200):
        model.observe(8, (1, 10, 50), 5.0)
    model.fit()
    model.observe(8, (1, 10, 50), 5000.0)
    model.fit()
    assert predict(model, 8, (1, 10, 50)) < 5.0 * 1.5


# ---- Models: routing, merged steps, plain data -----------------------------------------------------------


def record(
    lane: str, units: int, decodes: int, context: int, new: int, attended: float, ms: float
) -> StepRecord:
    return StepRecord(lane, units, 0, decodes, context, new, attended, int(ms * 1e6))  # type: ignore[arg-type]


def taught(seed: int = 0, merged: bool = False) -> Models:
    rng, models = random.Random(seed), Models(16)
    for step in range(400):
        now_ns = step * 10_000_000
        units, new, batch = rng.choice([4, 8, 16]), rng.randint(1, 512), rng.randint(1, 64)
        models.record(record("prefill", units, 0, 0, new, new * new / 2, 1 + 0.2 * new / units), now_ns)
        models.record(record("decode", units, batch, 100 * batch, 0, 0, 3 + 8 / units + 0.05 * batch), now_ns)
        if merged:
            ms = 4 + 0.01 * new + 0.05 * batch
            models.record(record("decode", 16, batch, 100 * batch, new, new * new / 2, ms), now_ns)
    return models


def test_phases_are_learned_apart() -> None:
    models = taught()
    assert models.confident
    assert models.prefill(8).ms(256, 256 * 128) == pytest.approx(1 + 0.2 * 256 / 8, rel=0.02)
    assert models.decode(4).ms(32, 3200) == pytest.approx(3 + 8 / 4 + 0.05 * 32, rel=0.02)
    assert (models.smallest_tried("prefill"), models.smallest_tried("decode")) == (4, 4)


def test_a_merged_step_is_the_sum_until_it_has_been_seen() -> None:
    apart = taught().merged(32, 3200)
    assert apart.ms(256, 256 * 128) == pytest.approx((1 + 0.2 * 256 / 16) + (3 + 8 / 16 + 1.6), rel=0.02)
    seen = taught(merged=True).merged(32, 3200)
    assert seen.ms(256, 256 * 128) == pytest.approx(4 + 2.56 + 1.6, rel=0.03)


def test_plain_data_restores_the_predictions() -> None:
    models, again = taught(merged=True), Models(16)
    again.load_plain(json.loads(json.dumps(models.to_plain())))
    assert again.confident
    assert again.num_steps > 100
    for units in (4, 6, 16):
        assert again.prefill(units).ms(100, 5000) == pytest.approx(
            models.prefill(units).ms(100, 5000), rel=0.03
        )
        assert again.decode(units).ms(9, 900) == pytest.approx(models.decode(units).ms(9, 900), rel=0.03)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plain: plain.pop("decode"),
        lambda plain: plain["decode"].append([1, 2, 3]),
        lambda plain: plain["prefill"][0].__setitem__(3, float("nan")),
        lambda plain: plain["prefill"][0].__setitem__(3, -1.0),
        lambda plain: plain["merged"][0].__setitem__(0, "8"),
        lambda plain: plain.__setitem__("merged", {"a": 1}),
    ],
)
def test_spoilt_data_are_refused_and_change_nothing(spoil: Callable[[Any], object]) -> None:
    plain = taught(merged=True).to_plain()
    spoil(plain)
    models = Models(16)
    with pytest.raises((ValueError, KeyError, TypeError)):
        models.load_plain(plain)
    assert models.num_steps == 0
    assert not models.confident
