"""Batches for the sampling kernels: sequences in slots, random parameters, random logits.

batch = Batch([random_row(rng, 300) for _ in range(4)], 300)
logits = random_logits(rng, 4, 300)
assert torch.equal(batch.sample(logits), batch.plain(logits))  # unless it was too close to call
"""

import math
import random
from dataclasses import replace

import torch
from semipd_kernels.sampling import SamplingWorkspace, sample
from semipd_kernels.sampling.reference import sample_reference
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.sampling.batch import SamplingBatch, SamplingRow
from semipd.sampling.history import TokenHistory
from semipd.sampling.parameters import Column, RowParams, column_values
from semipd.sampling.sampler import adjust
from semipd.sampling.stages import StagePlan, Stages, needs_history

CPU = torch.device("cpu")


class Batch:
    """Sequences in slots, as a lane of the device keeps them, and the kernels' memory, poisoned."""

    def __init__(self, rows: list[SamplingRow], vocab_size: int) -> None:
        self.rows, self.vocab_size = rows, vocab_size
        columns = torch.tensor([column_values(row.params, row.token_ids) for row in rows], dtype=torch.int32)
        self.columns = columns.reshape(len(rows), len(Column)).t().contiguous()
        self.stages = stages_of(rows, vocab_size)
        # Slots in another order than rows, and one more.
        self.slots = torch.arange(len(rows)).flip(0)
        self.history = TokenHistory(len(rows) + 1, vocab_size, CPU)
        self.counts = self.history.counts.fill_(-7)
        for slot, row in zip(self.slots.tolist(), rows, strict=True):
            if needs_history(row.params):
                start_history(self.history, slot, row)
            else:
                self.counts[slot] = 0
        self.work = SamplingWorkspace(len(rows) + 1, vocab_size, len(rows) + 1, CPU)
        self.poison()

    @property
    def params(self) -> RowParams:
        return RowParams.of(self.columns)

    def poison(self) -> None:
        for memory in vars(self.work).values():
            if isinstance(memory, Tensor):
                memory.fill_(math.nan if memory.is_floating_point() else torch.iinfo(memory.dtype).min + 5)

    def sample(self, logits: Tensor, stages: Stages | None = None) -> Tensor:
        return sample(logits, self.params, stages or self.stages, self.slots, self.counts, self.work)

    def reference(self, logits: Tensor) -> Tensor:
        return sample_reference(logits, self.params, self.stages, self.slots, self.counts)

    def plain(self, logits: Tensor) -> Tensor:
        return SamplingBatch(self.rows, self.vocab_size, CPU).sample(logits.float())

    def adjusted(self, logits: Tensor) -> Tensor:
        """What the kernels' choice is made from, by the plain sampler."""
        copied, counted = logits.to(torch.float32, copy=True), self.stages.counted
        adjust(copied, self.params, self.stages, self.counts[counted.pick(self.slots)] if counted else copied)
        return copied


def stages_of(rows: list[SamplingRow], vocab_size: int) -> Stages:
    plan = StagePlan([(row.params, row.num_prompt_tokens, len(row.token_ids)) for row in rows], vocab_size)
    return plan.bind({name: torch.tensor(v, dtype=torch.int32) for name, v in plan.vectors.items()})


def start_history(history: TokenHistory, slot: int, row: SamplingRow) -> None:
    allowed = torch.tensor(row.params.allowed_token_ids) if row.params.allowed_token_ids else None
    history.join(slot, torch.tensor(row.token_ids), row.num_prompt_tokens, allowed)


def random_row(rng: random.Random, vocab_size: int) -> SamplingRow:
    """Every parameter is off half of the time."""

    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.5 else off

    def tokens(most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randrange(most))]

    params = SamplingParams(
        max_tokens=100,
        seed=rng.getrandbits(64),
        temperature=maybe(math.exp(rng.uniform(-2.0, 2.0)), rng.choice([0.0, 1.0])),
        top_k=int(maybe(rng.randrange(1, vocab_size + 5), 0)),
        top_p=maybe(rng.uniform(0.05, 0.999), 1.0),
        min_p=maybe(rng.choice([rng.uniform(0.001, 0.3), 1.0]), 0.0),
        repetition_penalty=maybe(rng.uniform(0.7, 1.5), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=tuple((token, rng.uniform(-5, 5)) for token in set(tokens(5))),
        stop_token_ids=tuple(set(tokens(4))),
        min_tokens=int(maybe(rng.randrange(12), 0)),
    )
    if rng.random() < 0.3:
        some = rng.sample(range(vocab_size), rng.randrange(1, vocab_size + 1))
        params = replace(params, allowed_token_ids=(0, *some))
    prompt = [rng.randrange(vocab_size), *tokens(20)]
    return SamplingRow(params, prompt + tokens(10), len(prompt))


def random_logits(rng: random.Random, rows: int, vocab_size: int) -> Tensor:
    """Peaked or flat; half of the time rounded so that ties are common, sometimes with impossible tokens."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    logits = torch.randn(rows, vocab_size, generator=generator) * rng.choice([0.1, 0.5, 2.0, 6.0])
    if rng.random() < 0.5:
        logits = (logits * 2).round() / 2
    if rng.random() < 0.2:
        logits[:, 1:][torch.rand(rows, vocab_size - 1, generator=generator) < 0.3] = -math.inf
    return logits
