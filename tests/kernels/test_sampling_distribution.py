"""How often the kernels draw each token of a tiny vocabulary, against probabilities counted out by hand.

The other tests compare samplers with each other; here stands no sampler, only the definition.
"""

import math

import pytest
import torch
from semipd_kernels.sampling import SamplingWorkspace, sample, shape
from semipd_kernels.sampling.unfiltered import sample_unfiltered
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.sampling.parameters import RowParams, column_values
from semipd.sampling.stages import StagePlan

PROBS = (0.05, 0.4, 0.1, 0.25, 0.2)
"""Distinct, so that every filter cuts where the eye says."""
DRAWS = 60
CPU = torch.device("cpu")


def expected(params: SamplingParams) -> list[float]:
    """The definition, for probabilities without ties."""
    tempered = [p ** (1 / params.temperature) for p in PROBS]
    ranked, kept, mass = sorted(range(len(PROBS)), key=lambda i: -PROBS[i]), [0.0] * len(PROBS), 0.0
    ranked = ranked[: params.top_k or len(PROBS)]
    total = sum(tempered[i] for i in ranked)
    for i in ranked:
        if mass < params.top_p * total and tempered[i] >= params.min_p * tempered[ranked[0]]:
            kept[i] = tempered[i]
        mass += tempered[i]
    return [weight / sum(kept) for weight in kept]


def drawn(params: SamplingParams, *, captured: bool) -> Tensor:
    """Tokens of sequences that differ in their seeds alone."""
    size = len(PROBS)
    logits = torch.tensor(PROBS).log().expand(DRAWS, size).contiguous()
    values = column_values(params, [1, 2])
    columns = torch.tensor([values] * (DRAWS + 1), dtype=torch.int32).t().contiguous()
    columns[-2] = torch.arange(DRAWS + 1) * 7919  # low words of the seeds
    work = SamplingWorkspace(DRAWS, size, DRAWS, CPU)
    if captured:
        slots, tokens = (torch.arange(1, DRAWS + 1, dtype=torch.int32) for _ in range(2))
        sample_unfiltered(logits, slots, columns, tokens, work)
        return tokens
    rows = RowParams.of(columns[:, 1:].contiguous())
    plan = StagePlan([(params, 1, 2)] * DRAWS, size)
    counts = torch.zeros(1, size, dtype=torch.int32)
    return sample(logits, rows, plan.bind({}), torch.zeros(DRAWS, dtype=torch.int64), counts, work)


@pytest.mark.parametrize(
    ("params", "captured"),
    [
        pytest.param(SamplingParams(9, 0), True, marks=pytest.mark.soak),
        (SamplingParams(9, 0, temperature=0.5, min_p=0.2), True),
        pytest.param(SamplingParams(9, 0, top_p=0.7), False, marks=pytest.mark.soak),
        pytest.param(
            SamplingParams(9, 0, temperature=2.0, top_k=3, top_p=0.8), False, marks=pytest.mark.soak
        ),
    ],
)
def test_tokens_come_as_often_as_the_definition_says(
    params: SamplingParams, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shape, "TILE", 8)
    tokens = drawn(params, captured=captured)
    for token, prob in enumerate(expected(params)):
        count, sigma = int((tokens == token).sum()), math.sqrt(DRAWS * prob * (1 - prob))
        assert abs(count - DRAWS * prob) <= 3.5 * sigma, (token, count, prob)
