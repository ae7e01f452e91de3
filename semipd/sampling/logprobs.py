"""Log-probabilities of chosen tokens and of the best alternatives, from raw logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from semipd.core.plan import TokenLogprobs

_ROWS_AT_ONCE = 64
"""Bounds the copy of the logits that log_softmax makes: a prompt chunk can have hundreds of rows."""


class RowLogprobs(NamedTuple):
    """`own` float32 [rows] and `ranks` int64 [rows] of the tokens; of the best ones, by falling value,
    `ids` int64 and `values` float32 [rows, num_top]."""

    own: torch.Tensor
    ranks: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One entry per row: logits fp32 [rows, vocab], tokens int64 [rows], alternatives wanted per row."""
    entries: list[TokenLogprobs] = []
    for start in range(0, len(num_top), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        entries += _block(logits[rows], tokens[rows], num_top[rows])
    return entries


def row_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> RowLogprobs:
    """Of raw `logits` float32 [rows, vocab] and `tokens` int64 [rows]. Waits for nothing on the device."""
    logprobs = logits.log_softmax(dim=-1)
    own = logprobs.gather(1, tokens[:, None])
    ranks = (logprobs >= own).sum(dim=-1)
    # Lower ids first among equals, as in sampling.
    ids = logprobs.topk(num_top, dim=-1).indices.sort(dim=-1).values
    values, order = logprobs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return RowLogprobs(own.squeeze(1), ranks, ids.gather(1, order), values)


def _block(logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    found = row_logprobs(logits, tokens, min(max(num_top), logits.shape[1]))
    own: list[float] = found.own.tolist()
    ranks: list[int] = found.ranks.tolist()
    top_ids: list[list[int]] = found.ids.tolist()
    top_values: list[list[float]] = found.values.tolist()
    return [
        TokenLogprobs(token, logprob, tuple(zip(row_ids[:n], row_values[:n], strict=True)), rank)
        for token, logprob, row_ids, row_values, n, rank in zip(
            tokens.tolist(), own, top_ids, top_values, num_top, ranks, strict=True
        )
    ]
