"""Log-probabilities of chosen tokens and of the best alternatives, from raw logits."""

from collections.abc import Sequence

import torch

from semipd.core.plan import TokenLogprobs

_ROWS_AT_ONCE = 64
"""Bounds the copy of the logits that log_softmax makes: a prompt chunk can have hundreds of rows."""


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """One entry per row: logits fp32 [rows, vocab], tokens int64 [rows], alternatives wanted per row."""
    entries: list[TokenLogprobs] = []
    for start in range(0, len(num_top), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        entries += _block(logits[rows], tokens[rows], num_top[rows])
    return entries


def _block(logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    own: list[float] = chosen.squeeze(1).tolist()
    ranks: list[int] = (logprobs >= chosen).sum(dim=-1).tolist()
    # Lower ids first among equals, as in sampling.
    ids = logprobs.topk(min(max(num_top), logits.shape[1]), dim=-1).indices.sort(dim=-1).values
    values, order = logprobs.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    top_ids: list[list[int]] = ids.gather(1, order).tolist()
    top_values: list[list[float]] = values.tolist()
    return [
        TokenLogprobs(token, logprob, tuple(zip(row_ids[:n], row_values[:n], strict=True)), rank)
        for token, logprob, row_ids, row_values, n, rank in zip(
            tokens.tolist(), own, top_ids, top_values, num_top, ranks, strict=True
        )
    ]
