"""Sampling a step's rows on the device, from per-slot parameters: what models.sampler means, without waiting
for the host.

Which stages a step needs is known on the host, since it depends on parameters only (`Stages`); positions,
newest tokens and counts are on the device, since a step may be launched before the one before it has settled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.slots import Column, SlotState, float_bits
from semipd.devices.cuda.staging import Packer
from semipd.models.philox import uniforms

INVALID_TOKEN = -1
_TINY = torch.finfo(torch.float32).tiny
_WORD = 0xFFFFFFFF


def has_penalty(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


class TokenHistory:
    """Counts over the vocabulary that penalties need, for the slots of sequences that have one."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.output_counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)
        self.seen = torch.zeros(num_slots, vocab_size, dtype=torch.bool, device=device)

    @property
    def num_bytes(self) -> int:
        return self.output_counts.nbytes + self.seen.nbytes

    def join(self, slot: int, tokens: Tensor, num_prompt_tokens: int) -> None:
        """`tokens` int32 on the device: the whole history of the slot's new sequence."""
        output = tokens[num_prompt_tokens:].long()
        self.seen[slot].zero_().index_fill_(0, tokens.long(), True)
        counts = self.output_counts[slot].zero_()
        counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def advance(self, slots: Tensor, tokens: Tensor) -> None:
        """Both int64 [R]; no slot twice."""
        ones = torch.ones((), dtype=torch.int32, device=slots.device)
        self.output_counts.index_put_((slots, tokens), ones, accumulate=True)
        self.seen[slots, tokens] = True


@dataclass(frozen=True, slots=True)
class Stages:
    """Attributes:
    bias: rows, tokens (int32) and values (float32) to add; None: nothing.
    stops: rows and tokens (int32) that are impossible while a row is shorter than its MIN_END.
    penalised: int32 rows that have penalties.
    draws: some row has a temperature; then `max_top_k` (0: off in every row), `top_p`, `min_p` say what cuts.
    """

    bias: tuple[Tensor, Tensor, Tensor] | None
    stops: tuple[Tensor, Tensor] | None
    penalised: Tensor | None
    draws: bool
    max_top_k: int
    top_p: bool
    min_p: bool


class StagePlan:
    """The stages of the sequences sampled in one step, before their vectors are on the device."""

    def __init__(self, packer: Packer, params: Sequence[SamplingParams], vocab_size: int) -> None:
        bias = [(row, token, value) for row, p in enumerate(params) for token, value in p.logit_bias]
        stops = [(row, token) for row, p in enumerate(params) if p.min_tokens for token in p.stop_token_ids]
        penalised = [row for row, p in enumerate(params) if has_penalty(p)]
        drawn = [p for p in params if not p.greedy]
        self._bias = _columns(packer, [(row, token, float_bits(value)) for row, token, value in bias])
        self._stops = _columns(packer, stops)
        self._penalised = _columns(packer, [(row,) for row in penalised])
        self._draws = bool(drawn)
        self._max_top_k = max((p.top_k for p in drawn if p.top_k < vocab_size), default=0)
        self._top_p = any(p.top_p < 1.0 for p in drawn)
        self._min_p = any(p.min_p > 0.0 for p in drawn)

    def bind(self, view: Callable[[int], Tensor]) -> Stages:
        """`view`: the packer's vectors on the device."""
        bias = [view(number) for number in self._bias]
        stops = [view(number) for number in self._stops]
        return Stages(
            bias=(bias[0], bias[1], bias[2].view(torch.float32)) if bias else None,
            stops=(stops[0], stops[1]) if stops else None,
            penalised=view(self._penalised[0]) if self._penalised else None,
            draws=self._draws,
            max_top_k=self._max_top_k,
            top_p=self._top_p,
            min_p=self._min_p,
        )


def _columns(packer: Packer, entries: Sequence[tuple[int, ...]]) -> list[int]:
    """Vectors of the entries' first, second, ... elements; none without entries."""
    return [packer.add(column) for column in zip(*entries, strict=True)]


class Sampler(Protocol):
    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        """Next token of each row, int32 [R], INVALID_TOKEN where a row has no finite largest logit.

        `logits` float32 [R, vocab] is overwritten; `slots` int64 [R]. Changes neither state nor history.
        """


class TorchSampler:
    """In plain torch, on any device. See models.sampler for order and sources."""

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        columns = state.columns[:, slots]
        if stages.bias is not None:
            rows, tokens, values = stages.bias
            logits.index_put_((rows, tokens), values, accumulate=True)
        if stages.stops is not None:
            _forbid_stops(logits, columns, stages.stops)
        if stages.penalised is not None:
            _penalise(logits, columns, slots, stages.penalised, history)
        best, tokens = logits.max(dim=-1)
        if stages.draws:
            drawn = _draw(logits, best, columns, stages)
            tokens = torch.where(_float(columns, Column.TEMPERATURE_BITS) == 0.0, tokens, drawn)
        return torch.where(best.isfinite(), tokens, INVALID_TOKEN).to(torch.int32)


def _float(columns: Tensor, column: Column) -> Tensor:
    return columns[column].view(torch.float32)


def _forbid_stops(logits: Tensor, columns: Tensor, stops: tuple[Tensor, Tensor]) -> None:
    rows, tokens = stops
    is_short = columns[Column.POSITION] + 1 < columns[Column.MIN_END]
    masks = torch.zeros(rows.shape, dtype=torch.float32, device=logits.device)
    logits.index_put_((rows, tokens), masks.masked_fill_(is_short[rows], -torch.inf), accumulate=True)


def _penalise(logits: Tensor, columns: Tensor, slots: Tensor, rows: Tensor, history: TokenHistory) -> None:
    """Repetition counts prompt and output; frequency and presence count output."""

    def per_row(column: Column) -> Tensor:
        return _float(columns, column)[rows][:, None]

    picked, counts = logits[rows], history.output_counts[slots[rows]].float()
    repetition = per_row(Column.REPETITION_BITS)
    factors = torch.where(picked > 0, 1.0 / repetition, repetition)
    picked.mul_(factors.where(history.seen[slots[rows]], 1.0))
    picked.addcmul_(counts, per_row(Column.FREQUENCY_BITS), value=-1)
    picked.addcmul_(counts.clamp_max_(1.0), per_row(Column.PRESENCE_BITS), value=-1)
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
