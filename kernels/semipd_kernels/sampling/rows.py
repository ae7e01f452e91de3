"""Sampling parameters of a batch as tensors of fixed shapes, so that a captured graph can read new values."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from semipd.core.sampling import SamplingParams

NO_SLOT = -1
PROMPT_FLAG = 1 << 30
FORBIDDEN = -(1 << 31)
"""Of a count, set in every token that is not allowed: its sign."""
_TINY = torch.finfo(torch.float32).tiny
_MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingUses:
    """What some row of a batch may need. Launches for the rest are left out, so it is part of a graph's key.

    Attributes:
        draws: some row has a temperature.
        filters: most filters any row combines: 0: none; 1: top-k or top-p; 2: both.
    """

    draws: bool = True
    filters: int = 2

    @classmethod
    def of(cls, params: Sequence[SamplingParams]) -> "SamplingUses":
        drawn = [p for p in params if not p.greedy]
        return cls(bool(drawn), max([(p.top_k > 0) + (p.top_p < 1.0) for p in drawn], default=0))


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """One entry per row of logits, all contiguous on one device.

    An edit is a token whose logit is biased, or impossible for a while; at most one per row and token. A row
    with edits, penalties or allowed tokens needs a slot: a row of the counts and of the workspace.

    Attributes:
        temperature: [B] fp32; 0: greedy.
        top_k: [B] int32; 0: off.
        top_p, min_p: [B] fp32; 1 and 0: off.
        repetition, frequency, presence: [B] fp32 penalties; 1, 0, 0: off.
        seeds: [B] int64, the bits of the unsigned 64-bit seed.
        positions: [B] int64, tokens in the history; the index of the token to be sampled.
        slots: [B] int32, different from each other; NO_SLOT: the row's logits are taken as they are.
        edit_starts: [B + 1] int32: row i owns the edits [edit_starts[i], edit_starts[i + 1]).
        edit_tokens: [E] int32.
        edit_bias: [E] fp32, added to the logit.
        edit_until: [E] int64: impossible while the position is below.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    seeds: Tensor
    positions: Tensor
    slots: Tensor
    edit_starts: Tensor
    edit_tokens: Tensor
    edit_bias: Tensor
    edit_until: Tensor

    @classmethod
    def pack(
        cls,
        params: Sequence[SamplingParams],
        num_tokens: Sequence[int],
        num_prompt_tokens: Sequence[int],
        slots: Sequence[int],
        device: torch.device,
        *,
        num_rows: int | None = None,
        num_edits: int | None = None,
    ) -> "SamplingRows":
        """Of sequences with `num_tokens` tokens so far, `num_prompt_tokens` of them prompt.

        `num_rows`, `num_edits`: capacities, filled up with greedy rows and unused edits; None: as needed.
        """
        edits = [edits_of(p, n, m) for p, n, m in zip(params, num_tokens, num_prompt_tokens, strict=True)]
        needed = sum(map(len, edits))
        padding = len(params) if num_rows is None else num_rows
        padding -= len(params)
        unused = 0 if num_edits is None else num_edits - needed
        assert padding >= 0, f"{len(params)} rows, capacity {num_rows}"
        assert unused >= 0, f"{needed} edits, capacity {num_edits}"
        for row, (p, slot) in enumerate(zip(params, slots, strict=True)):
            assert slot != NO_SLOT or not (edits[row] or needs_history(p)), f"row {row} needs a slot"

        def floats(values: Sequence[float], off: float) -> Tensor:
            return torch.tensor([*values, *[off] * padding], dtype=torch.float32, device=device)

        def ints(values: Sequence[int], off: int, dtype: torch.dtype, padding: int = padding) -> Tensor:
            return torch.tensor([*values, *[off] * padding], dtype=dtype, device=device)

        starts = [sum(map(len, edits[:row])) for row in range(len(params) + 1)]
        flat = [edit for row_edits in edits for edit in row_edits]
        biases = [bias for _, bias, _ in flat]
        return cls(
            temperature=floats([0.0 if p.greedy else max(p.temperature, _TINY) for p in params], 0.0),
            top_k=ints([min(p.top_k, _MAX_TOP_K) for p in params], 0, torch.int32),
            top_p=floats([p.top_p for p in params], 1.0),
            min_p=floats([p.min_p for p in params], 0.0),
            repetition=floats([p.repetition_penalty for p in params], 1.0),
            frequency=floats([p.frequency_penalty for p in params], 0.0),
            presence=floats([p.presence_penalty for p in params], 0.0),
            seeds=ints([_signed(p.seed) for p in params], 0, torch.int64),
            positions=ints(num_tokens, 0, torch.int64),
            slots=ints(slots, NO_SLOT, torch.int32),
            edit_starts=ints(starts, needed, torch.int32),
            edit_tokens=ints([token for token, _, _ in flat], 0, torch.int32, unused),
            edit_bias=torch.tensor([*biases, *[0.0] * unused], dtype=torch.float32, device=device),
            edit_until=ints([until for _, _, until in flat], 0, torch.int64, unused),
        )

    def copy_from(self, other: "SamplingRows") -> None:
        """Take over the values of rows packed to the same capacities; asynchronous from pinned memory."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name), non_blocking=True)

    def __len__(self) -> int:
        return len(self.temperature)


def has_penalty(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    )


def needs_history(params: SamplingParams) -> bool:
    """Whether the row's counts say something: see `count_history`."""
    return has_penalty(params) or bool(params.allowed_token_ids)


def edits_of(params: SamplingParams, num_tokens: int, num_prompt_tokens: int) -> list[tuple[int, float, int]]:
    """(token, bias, impossible until this position), by rising token."""
    biases: dict[int, float] = {}
    for token, bias in params.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    until = num_prompt_tokens + params.min_tokens
    masked = set(params.stop_token_ids) if num_tokens < until else set()
    return [
        (token, biases.get(token, 0.0), until if token in masked else 0)
        for token in sorted(biases.keys() | masked)
    ]


def count_history(
    counts: Tensor,
    slot: int,
    token_ids: Sequence[int],
    num_prompt_tokens: int,
    allowed_token_ids: Sequence[int] = (),
) -> None:
    """Start row `slot` of `counts` (int32 [slots, V]) with a sequence's history: per token how often it is in
    the output, plus PROMPT_FLAG if it is in the prompt, plus FORBIDDEN if only others are allowed. For
    admissions: not to be captured in a graph."""
    history = torch.tensor(token_ids, dtype=torch.int64, device=counts.device)
    prompt, output = history[:num_prompt_tokens], history[num_prompt_tokens:]
    row = counts[slot].zero_()
    row.index_add_(0, output, torch.ones_like(output, dtype=counts.dtype))
    row[prompt] = row[prompt] + PROMPT_FLAG
    if allowed_token_ids:
        mask = torch.full_like(row, FORBIDDEN)
        mask[torch.tensor(allowed_token_ids, dtype=torch.int64, device=counts.device)] = 0
        row.bitwise_or_(mask)


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed
