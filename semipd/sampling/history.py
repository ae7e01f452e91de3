"""Which tokens sequences have used and may use: what penalties and allowed tokens need."""

import torch
from torch import Tensor

PROMPT_FLAG = 1 << 30
"""Of a count: the token stands in the prompt."""
FORBIDDEN = -(1 << 31)
"""Of a count, its sign: the row may not choose the token."""


class TokenHistory:
    """`counts` int32 [slots, vocab]: how often a token stands in the output, plus the flags that hold."""

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
