"""Where top-k and top-p cut a row: exactly where the definition says, whatever the logits.

The oracle sorts a row's distances and adds up their masses, which are integers: nothing is too close to call.
"""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from semipd_kernels.sampling import shape
from semipd_kernels.sampling.workspace import SamplingMemory
from support.sampling_rows import Batch, random_logits
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.sampling.batch import SamplingRow

ALL_BITS = 0x7FFFFFFF
OFF = (ALL_BITS, 0)
"""Every distance is below; no ties."""


def row_of(seed: int, **params: float) -> SamplingRow:
    return SamplingRow(SamplingParams(9, seed, **params), [1, 2], 2)  # type: ignore[arg-type]


def limit_of(logits: Tensor, params: SamplingParams) -> tuple[int, int]:
    """The distance at which the row is cut, as bits, and how many of the tokens at it survive."""
    temperature = torch.tensor(params.temperature)
    distance = ((logits.max() + 0.0 - logits) / temperature).sort().values
    masses = (np.exp(-distance.numpy()) * np.float32(2**40)).astype(np.int64)
    bits, masses = distance.numpy().view(np.int32)[masses > 0], masses[masses > 0]
    limit = OFF
    if 0 < params.top_k < len(logits) and params.top_k < len(bits):
        kth = int(bits[params.top_k - 1])
        limit = (kth + 1, 0)
        bits, masses = bits[bits <= kth], masses[bits <= kth]
    if params.top_p < 1.0:
        total = int(masses.sum())
        needed = min(int(np.ceil(np.float32(params.top_p) * np.float32(total))), total)
        last = int((np.cumsum(masses) < needed).sum())
        at_limit, before = bits == bits[last], masses[bits < bits[last]].sum()
        limit = (int(bits[last]), -(-(needed - int(before)) // int(masses[at_limit][0])))
    return limit


def check(batch: Batch, logits: Tensor) -> None:
    """Every filtered row is cut where the oracle says."""
    batch.sample(logits)
    for row, values, limit in zip(batch.rows, logits, batch.work.limits.tolist(), strict=False):
        assert tuple(limit) == limit_of(values, row.params), row.params


def random_filters(rng: random.Random, vocab_size: int) -> dict[str, float]:
    choices: list[dict[str, float]] = [
        {"top_p": rng.choice([rng.random(), 1e-7, 1 - 1e-6])},
        {"top_k": rng.choice([1, 2, rng.randrange(1, vocab_size + 2)])},
        {"top_k": rng.randrange(1, vocab_size + 2), "top_p": rng.random()},
    ]
    return {"temperature": math.exp(rng.uniform(-2, 2)), **rng.choice(choices)}


def check_random_rows(seed: int, vocab_size: int, rounds: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        rows = [row_of(seed, **random_filters(rng, vocab_size)) for _ in range(4)]
        check(Batch(rows, vocab_size), random_logits(rng, 4, vocab_size))


@pytest.mark.parametrize("room", [16384, 0])
def test_the_cut_is_exact(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for candidates the row's kernel looks at all logits."""
    monkeypatch.setattr(shape, "TILE", 64)
    monkeypatch.setattr(shape, "CANDIDATES", room)
    check_random_rows(seed=room, vocab_size=200, rounds=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("vocab_size", "tile"), [(5, 64), (300, 64), (3000, 256), (9000, 4096)])
def test_many_cuts_are_exact(seed: int, vocab_size: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TILE", tile)
    monkeypatch.setattr(shape, "CANDIDATES", 100 * (seed % 2) + 20)
    check_random_rows(seed, vocab_size, rounds=12)


def hard_rows(vocab_size: int) -> tuple[list[SamplingRow], Tensor]:
    """Rows on which a search may end wrongly, or never."""
    generator = torch.Generator().manual_seed(vocab_size)
    bell = torch.randn(vocab_size, generator=generator)
    equal, dominant, masked = torch.zeros(vocab_size), bell.clone(), bell.clone()
    dominant[vocab_size - 3] = 60.0
    masked[torch.rand(vocab_size, generator=generator) < 0.99] = -math.inf
    near = 1.0 + bell.abs() * 1e-6
    cases: list[tuple[Tensor, dict[str, float]]] = [
        (equal, {"top_p": 0.5, "top_k": 7}),
        (dominant, {"top_p": 0.999}),
        (masked, {"top_p": 0.3, "top_k": vocab_size // 2}),
        (near, {"top_p": 0.7}),
        (bell, {"top_k": 1}),
        (bell * 3, {"top_k": vocab_size, "top_p": 1e-9}),
        ((bell * 4).round(), {"top_k": 500, "top_p": 0.9, "temperature": 0.8}),
    ]
    rows = [row_of(seed, **params) for seed, (_, params) in enumerate(cases)]
    return rows, torch.stack([logits for logits, _ in cases])


@pytest.mark.parametrize(
    "vocab_size",
    [9000, *(pytest.param(size, marks=pytest.mark.soak) for size in (50257, 151936, 262144))],
)
def test_hard_rows(vocab_size: int) -> None:
    """Among rows that are not filtered, and one that is invalid."""
    rows, logits = hard_rows(vocab_size)
    others = [row_of(9), row_of(9, temperature=0.0, top_p=0.5), row_of(9, top_p=0.5, top_k=3)]
    values = torch.stack([logits[4], logits[4], logits[4].index_fill(0, torch.tensor([11]), math.nan)])
    batch, every = Batch([*rows, *others], vocab_size), torch.cat((logits, values))
    tokens = batch.sample(every)
    limits = [tuple(limit) for limit in batch.work.limits.tolist()]
    assert limits[:7] == [limit_of(*pair) for pair in zip(logits, [row.params for row in rows], strict=True)]
    assert limits[7:10] == [OFF] * 3
    assert tokens.tolist() == batch.plain(every).tolist()
    assert tokens.tolist()[9] == -1


def test_a_row_that_cannot_be_gathered_leaves_the_room_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beside it that can are gathered."""
    monkeypatch.setattr(shape, "TILE", 128)
    monkeypatch.setattr(shape, "CANDIDATES", 16)
    crowd = 3.0 - torch.arange(400) % 128 * 1e-6  # the tiles' largest logits tell nothing of it
    apart = torch.arange(400).flip(0) * 0.1
    batch = Batch([row_of(1, top_p=0.5), row_of(1, top_p=0.9)], 400)
    logits = torch.stack((crowd, apart))
    poison = int(batch.work.candidates[0, 0])
    check(batch, logits)
    assert (batch.work.candidates[0] == poison).all()
    assert (batch.work.candidates[1] != poison).any()


def test_a_draw_takes_at_most_seven_launches() -> None:
    from semipd_kernels.sampling.launch import launches

    def number(draws: bool, cuts: bool) -> int:
        batch = Batch([row_of(1, top_p=0.5)], 50)
        used = batch.slots.int()
        edits = (used, used, used.float(), batch.slots)
        memory = SamplingMemory(*(getattr(batch.work, name) for name in SamplingMemory._fields))
        given = (torch.zeros(1, 50), batch.params, used, edits, batch.counts, memory, batch.slots)
        return len(list(launches(*given, draws, cuts)))

    assert [number(False, False), number(True, False), number(True, True)] == [2, 3, 7]


def test_min_p_comes_after_both() -> None:
    rows = [row_of(seed, top_p=0.9, top_k=6, min_p=0.3) for seed in range(4)]
    logits = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1, 0.05]).log().repeat(4, 1)
    batch = Batch([row._replace(params=replace(row.params, seed=seed)) for seed, row in enumerate(rows)], 6)
    tokens = batch.sample(logits)
    assert tokens.tolist() == batch.plain(logits).tolist()
    assert (tokens <= 3).all()
