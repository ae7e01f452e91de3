"""Sampling a step's rows on the device, from per-slot parameters: what models.sampler means, without waiting
for the host. In its order: logit bias, allowed tokens, min_tokens, penalties, then greedy or the draw.

Which stages a step needs is known on the host, since it depends on parameters only (`Stages`); positions,
newest tokens and counts are on the device, since a step may be launched before the one before it has settled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.rows.slots import Column, SlotState, float_bits
from semipd.devices.cuda.rows.staging import Packer
from semipd.sampling.philox import uniforms
from semipd.sampling.sampler import INVALID_TOKEN

PROMPT_FLAG = 1 << 30
FORBIDDEN = -(1 << 31)
_TINY = torch.finfo(torch.float32).tiny
_WORD = 0xFFFFFFFF


def has_penalty(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


def needs_history(params: SamplingParams) -> bool:
    return has_penalty(params) or bool(params.allowed_token_ids)


class TokenHistory:
    """What penalties and allowed tokens need, for the slots of sequences that have them. `counts` int32
    [slots, vocab]: how often a token stands in the output, plus PROMPT_FLAG if it stands in the prompt, plus
    FORBIDDEN (the sign) if only others are allowed."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)

    def join(self, slot: int, tokens: Tensor, num_prompt_tokens: int, allowed: Tensor | None = None) -> None:
        """`tokens` int32 on the device: the whole history of the slot's new sequence. `allowed` likewise;
        None: every token."""
        prompt, output = tokens[:num_prompt_tokens].long(), tokens[num_prompt_tokens:].long()
        row = self.counts[slot].zero_().index_fill_(0, prompt, PROMPT_FLAG)
        row.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        if allowed is not None:
            row.bitwise_or_(torch.full_like(row, FORBIDDEN).index_fill_(0, allowed.long(), 0))

    def advance(self, slots: Tensor, tokens: Tensor) -> None:
        """Both int64 [R]; no slot twice."""
        one = torch.ones((), dtype=torch.int32, device=slots.device)
        self.counts.index_put_((slots, tokens), one, accumulate=True)


@dataclass(frozen=True, slots=True)
class Edits:
    """Tokens whose logit is biased, or impossible for a while; at most one edit per row and token.

    Attributes:
        starts: int32 [R + 1]: row i owns the edits from starts[i] to starts[i + 1].
        rows, tokens: int32. bias: float32, added.
        until: int32: impossible while the position of the token to be sampled is below.
    """

    starts: Tensor
    rows: Tensor
    tokens: Tensor
    bias: Tensor
    until: Tensor


@dataclass(frozen=True, slots=True)
class Stages:
    """Attributes:
    edits: None: no row has any.
    penalised: int32 rows that have penalties or allowed tokens; None: no row.
    restricts: some row has allowed tokens.
    adjusted: int32 rows that have edits or stand in `penalised`; None: no row.
    draws: some row has a temperature. Then `max_top_k` (0: off in every row), `top_p`, `min_p` say what cuts,
        and `filters` how many of top-k and top-p one row combines at most.
    """

    edits: Edits | None
    penalised: Tensor | None
    restricts: bool
    adjusted: Tensor | None
    draws: bool
    max_top_k: int
    top_p: bool
    min_p: bool
    filters: int


class StagePlan:
    """The stages of the sequences sampled in one step, before their vectors are on the device."""

    def __init__(self, packer: Packer, rows: Sequence[tuple[SamplingParams, int]], vocab_size: int) -> None:
        """`rows`: parameters and number of prompt tokens."""
        params = [p for p, _ in rows]
        edits = [edits_of(p, num_prompt) for p, num_prompt in rows]
        flat = [(row, *edit) for row, of_row in enumerate(edits) for edit in of_row]
        starts = list(accumulate(map(len, edits), initial=0))
        penalised = [row for row, p in enumerate(params) if needs_history(p)]
        adjusted = sorted({*penalised, *(row for row, of_row in enumerate(edits) if of_row)})
        self._edits = [packer.add(starts), *_columns(packer, flat)] if flat else []
        self._penalised = _columns(packer, [(row,) for row in penalised])
        self._adjusted = _columns(packer, [(row,) for row in adjusted])
        self._restricts = any(p.allowed_token_ids for p in params)
        drawn = [p for p in params if not p.greedy]
        self._draws = bool(drawn)
        self._max_top_k = max((p.top_k for p in drawn if p.top_k < vocab_size), default=0)
        self._top_p = any(p.top_p < 1.0 for p in drawn)
        self._min_p = any(p.min_p > 0.0 for p in drawn)
        self._filters = max([(p.top_k > 0) + (p.top_p < 1.0) for p in drawn], default=0)

    def bind(self, view: Callable[[int], Tensor]) -> Stages:
        """`view`: the packer's vectors on the device."""
        return Stages(
            edits=self._bind_edits(view) if self._edits else None,
            penalised=view(self._penalised[0]) if self._penalised else None,
            restricts=self._restricts,
            adjusted=view(self._adjusted[0]) if self._adjusted else None,
            draws=self._draws,
            max_top_k=self._max_top_k,
            top_p=self._top_p,
            min_p=self._min_p,
            filters=self._filters,
        )

    def _bind_edits(self, view: Callable[[int], Tensor]) -> Edits:
        starts, rows, tokens, bias, until = (view(number) for number in self._edits)
        return Edits(starts, rows, tokens, bias.view(torch.float32), until)


def edits_of(params: SamplingParams, num_prompt_tokens: int) -> list[tuple[int, int, int]]:
    """(token, bits of the bias, impossible until this position) by rising token."""
    biases: dict[int, float] = {}
    for token, bias in params.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    stops = set(params.stop_token_ids) if params.min_tokens else set()
    until = num_prompt_tokens + params.min_tokens
    return [
        (token, float_bits(biases.get(token, 0.0)), until if token in stops else 0)
        for token in sorted(biases.keys() | stops)
    ]


def _columns(packer: Packer, entries: Sequence[tuple[int, ...]]) -> list[int]:
    """Vectors of the entries' first, second, ... elements; none without entries."""
    return [packer.add(column) for column in zip(*entries, strict=True)]


class Sampler(Protocol):
    """Of one lane."""

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        """Next token of each row, int32 [R], INVALID_TOKEN where a row has no finite largest logit.

        `logits` float32 [R, vocab] may be overwritten; `slots` int64 [R]. Changes neither state nor history.
        """


class TorchSampler:
    """In plain torch, on any device. See models.sampler for order and sources."""

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        columns = state.columns.index_select(1, slots)
        if stages.edits is not None:
            _edit(logits, columns, stages.edits)
        if stages.penalised is not None:
            counts = history.counts[slots[stages.penalised]]
            if stages.restricts:
                counts = _restrict(logits, counts, stages.penalised)
            _penalise(logits, columns, counts, stages.penalised)
        best, tokens = logits.max(dim=-1)
        if stages.draws:
            drawn = _draw(logits, best, columns, stages)
            tokens = torch.where(_float(columns, Column.TEMPERATURE_BITS) == 0.0, tokens, drawn)
        return torch.where(best.isfinite(), tokens, INVALID_TOKEN).to(torch.int32)


def _float(columns: Tensor, column: Column) -> Tensor:
    return columns[column].view(torch.float32)


def _edit(logits: Tensor, columns: Tensor, edits: Edits) -> None:
    is_impossible = columns[Column.POSITION][edits.rows] + 1 < edits.until
    changes = edits.bias.masked_fill(is_impossible, -torch.inf)
    logits.index_put_((edits.rows, edits.tokens), changes, accumulate=True)


def _restrict(logits: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
    """Returns the counts without the masks."""
    masks = torch.zeros_like(counts, dtype=logits.dtype).masked_fill_(counts < 0, -torch.inf)
    logits.index_add_(0, rows, masks)
    return counts & ~FORBIDDEN


def _penalise(logits: Tensor, columns: Tensor, counts: Tensor, rows: Tensor) -> None:
    """Repetition counts prompt and output; frequency and presence count output."""

    def per_row(column: Column) -> Tensor:
        return _float(columns, column)[rows][:, None]

    picked, outputs = logits[rows], (counts & (PROMPT_FLAG - 1)).float()
    repetition = per_row(Column.REPETITION_BITS)
    factors = torch.where(picked > 0, 1.0 / repetition, repetition)
    picked.mul_(factors.where(counts != 0, 1.0))
    picked.addcmul_(outputs, per_row(Column.FREQUENCY_BITS), value=-1)
    picked.addcmul_(outputs.clamp_max_(1.0), per_row(Column.PRESENCE_BITS), value=-1)
    logits.index_copy_(0, rows.long(), picked)


def _draw(logits: Tensor, best: Tensor, columns: Tensor, stages: Stages) -> Tensor:
    """One token of each row's distribution, int64; meaningless in greedy rows."""
    temperature = _float(columns, Column.TEMPERATURE_BITS).clamp_min(_TINY)[:, None]
    scaled = (logits - best[:, None]).div_(temperature)
    if stages.max_top_k:
        _cut_top_k(scaled, columns[Column.TOP_K], stages.max_top_k)
    weights = scaled.exp_()
    if stages.top_p:
        _cut_top_p(weights, _float(columns, Column.TOP_P_BITS))
    if stages.min_p:
        weights.mul_(weights >= _float(columns, Column.MIN_P_BITS)[:, None])
    cdf = weights.cumsum(dim=-1)
    threshold = _uniforms(columns)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, threshold, right=True).squeeze(1).clamp_max_(cdf.shape[1] - 1)


def _cut_top_k(logits: Tensor, top_k: Tensor, largest: int) -> None:
    is_off = (top_k == 0) | (top_k > largest)
    kth = top_k.clamp(1, largest).long()[:, None] - 1
    thresholds = logits.topk(largest, dim=-1).values.gather(1, kth)
    logits.masked_fill_(logits < thresholds.masked_fill_(is_off[:, None], -torch.inf), -torch.inf)


def _cut_top_p(weights: Tensor, top_p: Tensor) -> None:
    """Equal probabilities rank by lower token id; a token survives if those before it sum to less than p."""
    needed = top_p * weights.cumsum(dim=-1)[:, -1]
    ranked, ids = weights.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0.0
    is_kept = (before < needed[:, None]) | (top_p >= 1.0)[:, None]
    weights.scatter_(1, ids, ranked.mul_(is_kept))


def _uniforms(columns: Tensor) -> Tensor:
    """float32 [R], of each row's seed and the position of the token that is sampled."""
    low, high = (columns[column].long() & _WORD for column in (Column.SEED_LOW_BITS, Column.SEED_HIGH_BITS))
    return uniforms((low, high), columns[Column.POSITION].long() + 1)
