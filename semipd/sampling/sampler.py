"""Sampling as a function of (logits, parameters, token history, seed, position): DESIGN section 3.

Order, fp32 throughout:

    raw logits -> logit bias -> min_tokens masks stop tokens -> allowed_token_ids masks every other token
    -> repetition, frequency, presence penalty
    -> greedy (lowest id among equals), or: temperature -> top-k -> top-p -> min-p -> inverse CDF

Bias, masks and penalties are applied as vLLM applies them (repetition counts prompt and output, the
other two count output). A mask adds -inf, so NaN and +inf stay invalid wherever they stand: a row that holds
one, or has no token left, yields none. min-p comes last, as in transformers; vLLM applies it before top-k.
Tokens equal to the k-th largest logit all survive top-k, as in vLLM. In top-p equal probabilities rank by
lower id.

A row's token depends on that row alone: every operation here works row by row, whatever else is in the batch.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from semipd.core.sampling import SMALLEST
from semipd.sampling.history import FORBIDDEN, PROMPT_FLAG
from semipd.sampling.nucleus import nucleus
from semipd.sampling.parameters import RowParams
from semipd.sampling.philox import seed_key, uniforms
from semipd.sampling.stages import Edits, RowSet, Stages

INVALID_TOKEN = -1


class Ahead(NamedTuple):
    """What a caller that keeps its batch need not compute anew in every step.

    Attributes:
        uniform: float32 [D], the random numbers of the drawn rows: see `draws`.
        masks: float32 [C, vocab], -inf for what the counted rows may not choose: see `masks_of`.
    """

    uniform: Tensor | None = None
    masks: Tensor | None = None


NOTHING_AHEAD = Ahead()

_UNFILTERED = Stages(
    edits=None,
    counted=None,
    restricts=False,
    repeats=False,
    outputs=False,
    adjusted=None,
    drawn=RowSet(None),
    max_top_k=0,
    top_p=None,
    min_p=True,
    filters=False,
)


def sample(
    logits: Tensor, rows: RowParams, stages: Stages, counts: Tensor, ahead: Ahead = NOTHING_AHEAD
) -> Tensor:
    """Next token of each row, int64 [R]; INVALID_TOKEN where a row has no finite largest logit.

    Args:
        logits: float32 [R, vocab], raw; overwritten where `stages` has edits or counted rows.
        counts: int32 [C, vocab], of the counted rows (see TokenHistory); not looked at if there are none.
    """
    adjust(logits, rows, stages, counts, ahead.masks)
    best, tokens = logits.max(dim=-1)
    if stages.drawn is not None:
        uniform = draws(rows, stages.drawn) if ahead.uniform is None else ahead.uniform
        tokens = stages.drawn.put(tokens, _draw(logits, best, rows, stages, stages.drawn, uniform))
    return torch.where(best.isfinite(), tokens, INVALID_TOKEN)


def sample_unfiltered(logits: Tensor, rows: RowParams) -> Tensor:
    """The tokens of `sample` for rows whose logits nothing changes and no top-k or top-p cuts. Which of them
    are drawn is read on the device: the same operations serve every batch."""
    best, greedy = logits.max(dim=-1)
    drawn = replace(rows, temperature=rows.temperature.clamp_min(SMALLEST))
    uniform = draws(rows, RowSet(None))
    tokens = _draw(logits, best, drawn, _UNFILTERED, RowSet(None), uniform)
    tokens = tokens.where(rows.temperature > 0.0, greedy)
    return torch.where(best.isfinite(), tokens, INVALID_TOKEN)


def adjust(
    logits: Tensor, rows: RowParams, stages: Stages, counts: Tensor, masks: Tensor | None = None
) -> None:
    """All that comes before the choice, in place."""
    if stages.edits is not None:
        _edit(logits, rows, stages.edits)
    if stages.counted is not None:
        picked = stages.counted.pick(logits)
        if stages.restricts:
            picked.add_(masks_of(counts) if masks is None else masks)
        _penalise(picked, rows, stages, stages.counted, counts)
        stages.counted.put(logits, picked)


def masks_of(counts: Tensor) -> Tensor:
    return torch.where(counts < 0, -torch.inf, 0.0)


def draws(rows: RowParams, drawn: RowSet) -> Tensor:
    """float32 [D]: the random numbers of the drawn rows."""
    return uniforms(seed_key(drawn.pick(rows.seeds)), drawn.pick(rows.positions))


def _edit(logits: Tensor, rows: RowParams, edits: Edits) -> None:
    is_impossible = rows.positions[edits.rows] < edits.until
    changes = edits.bias.masked_fill(is_impossible, -torch.inf)
    logits.index_put_((edits.rows, edits.tokens), changes, accumulate=True)


def _penalise(logits: Tensor, rows: RowParams, stages: Stages, counted: RowSet, counts: Tensor) -> None:
    """`logits`: of the counted rows."""
    if stages.repeats:
        repetition = counted.pick(rows.repetition)[:, None]
        factors = torch.where(logits > 0, 1.0 / repetition, repetition)
        logits.mul_(factors.masked_fill_(counts & ~FORBIDDEN == 0, 1.0))
    if stages.outputs:
        output = (counts & (PROMPT_FLAG - 1)).float()
        logits.addcmul_(output, counted.pick(rows.frequency)[:, None], value=-1)
        logits.addcmul_(output.clamp_max_(1.0), counted.pick(rows.presence)[:, None], value=-1)


def _draw(
    logits: Tensor, best: Tensor, rows: RowParams, stages: Stages, drawn: RowSet, uniform: Tensor
) -> Tensor:
    # Relative to the largest logit, so that a tiny temperature cannot overflow. In place from here on:
    # at these sizes a fresh result costs more than the arithmetic.
    scaled = drawn.pick(logits) - drawn.pick(best)[:, None]
    scaled.div_(drawn.pick(rows.temperature)[:, None])
    if stages.max_top_k:
        _cut_top_k(scaled, drawn.pick(rows.top_k), stages.max_top_k)
    weights = scaled.exp_()
    if stages.top_p is not None:
        picked = stages.top_p.pick(weights)
        picked.mul_(nucleus(picked, stages.top_p.pick(drawn.pick(rows.top_p))))
        stages.top_p.put(weights, picked)
    if stages.min_p:
        # The largest weight is 1.
        weights.mul_(weights >= drawn.pick(rows.min_p)[:, None])
    cdf = weights.cumsum_(dim=-1)
    threshold = uniform[:, None] * cdf[:, -1:]
    # First token whose CDF exceeds the threshold: never one of weight zero. NaN rows have none.
    token = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
    return token.clamp_max_(cdf.shape[1] - 1)


def _cut_top_k(logits: Tensor, top_k: Tensor, largest: int) -> None:
    """Below the k-th largest: impossible. Finding that one value needs no full sort."""
    is_off = (top_k == 0) | (top_k > largest)
    kth = top_k.clamp(1, largest).long()[:, None] - 1
    thresholds = logits.topk(largest, dim=-1).values.gather(1, kth)
    thresholds.masked_fill_(is_off[:, None], -torch.inf)
    logits.masked_fill_(logits < thresholds, -torch.inf)
