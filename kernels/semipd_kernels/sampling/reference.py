"""What sampling means, row by row, in plain torch: semipd.sampling.sampler with masses in integers.

The order is: bias, allowed tokens, min_tokens, repetition, frequency and presence penalty, greedy or
temperature, top-k, top-p, min-p, inverse CDF in order of token ids.
"""

import math

import torch
from torch import Tensor

from semipd_kernels.sampling.rows import FORBIDDEN, NO_SLOT, PROMPT_FLAG, SamplingRows

MASS_ONE = 2.0**40
"""Mass of the most likely token: exp(-distance) becomes a count of 2^-40."""

_TINY = torch.finfo(torch.float32).tiny
_MASK = 0xFFFFFFFF


def sample_reference(logits: Tensor, rows: SamplingRows, counts: Tensor) -> Tensor:
    tokens = [_sample_row(logits[row].to(torch.float32), rows, counts, row) for row in range(len(rows))]
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def advance_reference(tokens: Tensor, rows: SamplingRows, counts: Tensor) -> None:
    for slot, token in zip(rows.slots.tolist(), tokens.tolist(), strict=True):
        if slot != NO_SLOT and 0 <= token < counts.shape[1]:
            counts[slot, token] += 1
    rows.positions.add_(1)


def token_logprobs_reference(
    logits: Tensor, tokens: Tensor, num_top: Tensor, max_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    in_range = (tokens >= 0) & (tokens < logits.shape[1]) & (num_top >= 0)
    own = logprobs.gather(1, tokens.where(in_range, 0)[:, None]).squeeze(1).masked_fill(~in_range, math.nan)
    values, ids = (part[:, :max_top] for part in logprobs.sort(dim=-1, descending=True, stable=True))
    without = (num_top <= 0)[:, None]
    return own, ids.to(torch.int32).masked_fill(without, -1), values.masked_fill(without, math.nan)


def adjusted_logits(logits: Tensor, rows: SamplingRows, counts: Tensor, row: int) -> Tensor:
    """fp32 [V] from the fp32 [V] of one row."""
    slot = int(rows.slots[row])
    if slot == NO_SLOT:
        return logits
    adjusted = logits.clone()
    for edit in range(int(rows.edit_starts[row]), int(rows.edit_starts[row + 1])):
        token = int(rows.edit_tokens[edit])
        adjusted[token] += rows.edit_bias[edit]
        if rows.positions[row] < rows.edit_until[edit]:
            adjusted[token] -= math.inf
    adjusted[counts[slot] < 0] -= math.inf
    factors = torch.where(adjusted > 0, 1.0 / rows.repetition[row], rows.repetition[row])
    adjusted *= torch.where(counts[slot] & ~FORBIDDEN != 0, factors, 1.0)
    in_output = (counts[slot] % PROMPT_FLAG).to(torch.float32)
    adjusted -= in_output * rows.frequency[row]
    adjusted -= in_output.clamp(max=1.0) * rows.presence[row]
    return adjusted


def uniform_bits(seed: int, position: int) -> int:
    """Top 24 bits of the first output word of Philox-4x32-10 (Salmon et al., SC 2011)."""
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    c0, c1, c2, c3 = position & _MASK, position >> 32, 0, 0
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & _MASK
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0 >> 8


def _sample_row(logits: Tensor, rows: SamplingRows, counts: Tensor, row: int) -> int:
    adjusted = adjusted_logits(logits, rows, counts, row)
    best, token = adjusted.max(dim=0)
    if not best.isfinite():
        return -1
    temperature = rows.temperature[row]
    if temperature == 0.0:
        return int(token)
    distance = (best - adjusted) / temperature.clamp_min(_TINY)
    weights = torch.exp(-distance)
    mass = (weights * MASS_ONE).to(torch.int64)
    top_k, top_p = int(rows.top_k[row]), rows.top_p[row]
    if 0 < top_k < len(mass):
        mass[distance > distance.sort().values[top_k - 1]] = 0
    if top_p < 1.0:
        needed = (top_p * mass.sum().to(torch.float32)).ceil().to(torch.int64).minimum(mass.sum())
        order = distance.argsort(stable=True)
        ranked_before = mass[order].cumsum(0) - mass[order]
        mass[order[ranked_before >= needed]] = 0
    mass[weights < rows.min_p[row]] = 0
    cumulative = mass.cumsum(0)
    threshold = uniform_bits(int(rows.seeds[row]), int(rows.positions[row])) * int(cumulative[-1]) >> 24
    return int((cumulative <= threshold).sum())
