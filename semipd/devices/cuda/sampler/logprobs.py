"""Log-probabilities in two halves: what the device computes, and the entries made of it once it is done.
See semipd.sampling.logprobs for their meaning."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipd.core.plan import TokenLogprobs
from semipd.sampling.logprobs import row_logprobs


@dataclass(frozen=True, slots=True)
class LogprobBuffers:
    """Pinned host memory for rows with `num_top` alternatives each: `own`, `values` float32, `ids`, `ranks`
    int32."""

    num_rows: int
    num_top: int
    own: Tensor
    values: Tensor
    ids: Tensor
    ranks: Tensor

    def launch(self, logits: Tensor, tokens: Tensor, first_row: int = 0) -> None:
        """Of raw `logits` [r, vocab] float32 and `tokens` int32 [r], into rows from `first_row` on."""
        found = row_logprobs(logits, tokens.long().clamp_min(0), self.num_top)
        end = first_row + logits.shape[0]
        self.own[first_row:end].copy_(found.own, non_blocking=True)
        self.ranks[first_row:end].copy_(found.ranks.to(torch.int32), non_blocking=True)
        cells = slice(first_row * self.num_top, end * self.num_top)
        self.values[cells].copy_(found.values.flatten(), non_blocking=True)
        self.ids[cells].copy_(found.ids.flatten().to(torch.int32), non_blocking=True)

    def entries(self, tokens: Sequence[int], num_top: Sequence[int | None]) -> list[TokenLogprobs | None]:
        """One per row, None where `num_top` is. Only once the device is done."""
        own: list[float] = self.own[: self.num_rows].tolist()
        ids: list[int] = self.ids[: self.num_rows * self.num_top].tolist()
        values: list[float] = self.values[: self.num_rows * self.num_top].tolist()
        ranks: list[int] = self.ranks[: self.num_rows].tolist()
        found: list[TokenLogprobs | None] = []
        for row, (token, wanted) in enumerate(zip(tokens, num_top, strict=True)):
            start = row * self.num_top
            end = start + min(wanted or 0, self.num_top)
            top = tuple(zip(ids[start:end], values[start:end], strict=True))
            found.append(None if wanted is None else TokenLogprobs(token, own[row], top, ranks[row]))
        return found
