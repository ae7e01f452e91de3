"""Sampling that a graph can hold: the tokens of the other kernels and of the plain sampler, bit for bit."""

import math
import random
from typing import Any

import pytest
import torch
from semipd_kernels import dispatch
from semipd_kernels.sampling import SamplingWorkspace, sample, shape
from semipd_kernels.sampling.unfiltered import sample_unfiltered
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.sampling.parameters import Column, RowParams, column_values
from semipd.sampling.sampler import sample as sample_plainly
from semipd.sampling.stages import StagePlan

CPU = torch.device("cpu")
NUM_SLOTS = 9
NO_COUNTS = torch.zeros(0, 0, dtype=torch.int32)


class Batch:
    """Sequences in slots, rows of them and of padding in any order. Memory is poisoned."""

    def __init__(self, rng: random.Random, vocab_size: int) -> None:
        self.params = [random_params(rng) for _ in range(NUM_SLOTS)]
        self.columns = torch.zeros(len(Column), NUM_SLOTS, dtype=torch.int32)
        for slot in range(1, NUM_SLOTS):
            values = column_values(self.params[slot], [3] * rng.randrange(1, 50))
            self.columns[:, slot] = torch.tensor(values, dtype=torch.int32)
        slots = rng.sample(range(1, NUM_SLOTS), rng.randrange(1, 6)) + [0] * rng.randrange(3)
        rng.shuffle(slots)
        self.slots = torch.tensor(slots, dtype=torch.int32)
        self.own = self.slots > 0
        self.work = SamplingWorkspace(NUM_SLOTS, vocab_size, 1, CPU)
        for memory in (self.work.tile_best, self.work.tile_token, self.work.tile_mass):
            memory.fill_(math.nan if memory.is_floating_point() else torch.iinfo(memory.dtype).min + 5)
        self.logits = random_logits(rng, len(slots), vocab_size)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Tokens and columns after it."""
        columns, tokens = self.columns.clone(), torch.full_like(self.slots, -7)
        sample_unfiltered(self.logits, self.slots, columns, tokens, self.work)
        return tokens, columns

    def expected(self) -> tuple[Tensor, Tensor]:
        """By the sampler that takes everything, of rows that are not padding."""
        rows, plan = RowParams.of(self.columns[:, self.slots[self.own].long()].contiguous()), self.plan
        stages = plan.bind({name: torch.tensor(v, dtype=torch.int32) for name, v in plan.vectors.items()})
        logits = self.logits[self.own]
        plainly = sample_plainly(logits.clone(), rows, stages, NO_COUNTS)
        slots, counts = torch.zeros(len(rows), dtype=torch.int64), torch.zeros(1, logits.shape[1]).int()
        with_counts = SamplingWorkspace(NUM_SLOTS, logits.shape[1], 1, CPU)
        by_kernels = sample(logits, rows, stages, slots, counts, with_counts)
        return plainly, by_kernels

    @property
    def plan(self) -> StagePlan:
        params = [self.params[slot] for slot in self.slots.tolist() if slot]
        return StagePlan([(p, 1, 2) for p in params], self.logits.shape[1])


def random_params(rng: random.Random) -> SamplingParams:
    temperature = rng.choice((0.0, 1e-30, 0.3, 1.0, 4.0))
    return SamplingParams(9, rng.getrandbits(64), temperature=temperature, min_p=rng.choice((0.0, 0.0, 0.2)))


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> Tensor:
    """Peaked, flat or equal; some rows hold what yields no token."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    logits = torch.randn(num_rows, vocab_size, generator=generator) * rng.choice((0.0, 0.1, 2.0, 9.0))
    logits = (logits * 2).round() / 2 if rng.random() < 0.5 else logits
    for bad in (math.nan, math.inf):
        if rng.random() < 0.2:
            logits[rng.randrange(num_rows), rng.randrange(vocab_size)] = bad
    if rng.random() < 0.2:
        logits[rng.randrange(num_rows)] = -math.inf
    return logits


def check(batch: Batch) -> int:
    """Rows whose token is another one than the plain sampler's: a matter of the last bit of a sum."""
    tokens, columns = batch.sample()
    plainly, by_kernels = batch.expected()
    own, slots = batch.own, batch.slots[batch.own].long()
    assert tokens[own].tolist() == by_kernels.tolist()
    assert (tokens[~own] == -7).all()
    expected = batch.columns.clone()
    expected[Column.TOKEN, slots] = tokens[own].clamp_min(0)
    expected[Column.POSITION, slots] += 1
    assert torch.equal(columns, expected)
    return int((plainly != tokens[own]).sum())


@pytest.mark.parametrize("vocab_size", [7, 300])
def test_tokens_are_those_of_the_other_kernels(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TILE", 128)
    rng = random.Random(vocab_size)
    assert sum(check(Batch(rng, vocab_size)) for _ in range(9)) <= 1


@pytest.mark.parametrize("vocab_size", [1, 7, 300, 5000])
def test_on_the_cpu_tokens_are_the_plain_samplers(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    rng = random.Random(vocab_size)
    assert sum(check(Batch(rng, vocab_size)) for _ in range(60)) == 0


def test_a_plan_says_whether_it_is_unfiltered() -> None:
    plain: dict[str, Any] = {"max_tokens": 9, "seed": 1}
    changes: list[dict[str, Any]] = [
        {"top_k": 3},
        {"top_p": 0.5},
        {"logit_bias": ((1, 2.0),)},
        {"presence_penalty": 0.5},
        {"allowed_token_ids": (1, 2)},
        {"stop_token_ids": (4,), "min_tokens": 3},
    ]
    unfiltered: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"min_p": 0.5},
        {"temperature": 0.0, "top_k": 3},
    ]
    for own in unfiltered:
        assert StagePlan([(SamplingParams(**plain, **own), 1, 2)], 50).is_unfiltered, own
    for own in changes:
        rows = [(SamplingParams(**plain), 1, 2), (SamplingParams(**plain, **own), 1, 2)]
        assert not StagePlan(rows, 50).is_unfiltered, own


@pytest.mark.parametrize("name", ["slots", "tokens", "columns", "logits", "workspace"])
@pytest.mark.parametrize("interpreted", [True, False])
def test_refuses_what_it_cannot_do(name: str, interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    inputs: dict[str, Any] = {
        "logits": torch.zeros(2, 16),
        "slots": torch.zeros(2, dtype=torch.int32),
        "columns": torch.zeros(len(Column), 3, dtype=torch.int32),
        "tokens": torch.zeros(2, dtype=torch.int32),
        "workspace": SamplingWorkspace(2, 16, 1, CPU),
    }
    wrong = SamplingWorkspace(1, 16, 1, CPU) if name == "workspace" else inputs[name].double()
    with pytest.raises(SemipdError, match="Sampling in a graph takes"):
        sample_unfiltered(**{**inputs, name: wrong})
