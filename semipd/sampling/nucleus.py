"""Top-p: the smallest set of most likely tokens whose probabilities reach p.

Holtzman et al., "The curious case of neural text degeneration", ICLR 2020. A token survives when the
probabilities ranked before it sum to less than p; equal probabilities rank by lower token id.
"""

import torch

_CANDIDATES = (64, 1024)
"""Tried in turn before sorting everything: most nuclei are small, and finding the largest few costs far less.
Fixed, so that the path a row takes depends on that row alone."""


def nucleus(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Surviving tokens, bool [rows, vocab]. `weights`: probabilities times any factor per row, fp32
    [rows, vocab]; `top_p`: fp32 [rows]."""
    # Not sum(): its order of addition, hence its last bits, may change with the number of rows.
    needed = top_p * weights.cumsum(dim=-1)[:, -1]
    return _survivors_of(weights, needed, _CANDIDATES)


def _survivors_of(weights: torch.Tensor, needed: torch.Tensor, limits: tuple[int, ...]) -> torch.Tensor:
    if not limits or weights.shape[1] <= limits[0]:
        return _by_full_sort(weights, needed)
    keep, complete = _among_candidates(weights, needed, limits[0])
    if not complete.all():
        rest = (~complete).nonzero().squeeze(1)
        keep[rest] = _survivors_of(weights[rest], needed[rest], limits[1:])
    return keep


def _by_full_sort(weights: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    ranked, ids = weights.sort(dim=-1, descending=True, stable=True)
    return _survivors(ranked, ids, needed, weights.shape[1])


def _among_candidates(
    weights: torch.Tensor, needed: torch.Tensor, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Survivors if the nucleus lies within the candidates, and per row whether it does."""
    ids = weights.topk(limit, dim=-1, sorted=False).indices.sort(dim=-1).values
    ranked, order = weights.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    # Equals of the last candidate may lie outside, so only the mass above it counts.
    last = ranked[:, -1:]
    mass = ranked.where(ranked > last, 0.0).cumsum(dim=-1)[:, -1]
    complete = (mass >= needed) | (last.squeeze(1) == 0.0)
    return _survivors(ranked, ids.gather(1, order), needed, weights.shape[1]), complete


def _survivors(
    ranked: torch.Tensor, ids: torch.Tensor, needed: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    before = ranked.cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0.0
    keep = (before < needed[:, None]) & (ranked > 0.0)
    return torch.zeros(len(ranked), vocab_size, dtype=torch.bool, device=ranked.device).scatter_(1, ids, keep)
