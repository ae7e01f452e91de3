"""A decoder whose logits are an exact function of the tokens it finds in the KV pool.

Integers only, so that any chunking or batching must give the same bits; a wrong slot, block table or
position gives other logits.
"""

import torch

from semipd.network.rows import PassResult, StepRows

NUM_STATES = 9973
BLOCK_SIZE = 16


class ToyDecoder:
    """Every step checks its rows. `pool` may be shared between decoders, like the real one."""

    def __init__(self, vocab_size: int, num_blocks: int, pool: torch.Tensor | None = None) -> None:
        self.block_size = BLOCK_SIZE
        generator = torch.Generator().manual_seed(vocab_size)
        self.table = torch.randn(NUM_STATES, vocab_size, generator=generator)
        # Poisoned: reading a slot that nobody wrote gives nonsense.
        self.pool = torch.full((num_blocks * BLOCK_SIZE,), -(10**12)) if pool is None else pool

    def forward(self, rows: StepRows, wanted: torch.Tensor | None) -> PassResult:
        query_lens = [1] * rows.num_decode
        sequences: list[tuple[torch.Tensor, int]] = []
        if rows.decode is not None:
            sequences += zip(rows.decode.tables, rows.decode.kv_lens.tolist(), strict=True)
        if rows.chunks is not None:
            query_lens += rows.chunks.host_query_lens
            sequences += zip(rows.chunks.tables, rows.chunks.host_kv_lens, strict=True)
        assert sum(query_lens) == rows.num_rows == len(rows.positions) == len(rows.slots)
        assert len(set(rows.slots.tolist())) == rows.num_rows
        self.pool[rows.slots] = rows.token_ids
        states: list[int] = []
        row = 0
        for query_len, (blocks, kv_len) in zip(query_lens, sequences, strict=True):
            slots = [int(blocks[i // BLOCK_SIZE]) * BLOCK_SIZE + i % BLOCK_SIZE for i in range(kv_len)]
            tokens = self.pool[slots].tolist()
            positions = rows.positions[row : row + query_len].tolist()
            assert positions == list(range(kv_len - query_len, kv_len))
            states += [state_after(tokens[: position + 1]) for position in positions]
            row += query_len
        logits = self.table[states]
        return PassResult(logits.clone() if wanted is None else logits[wanted].clone(), None)

    def logits_after(self, tokens: list[int]) -> torch.Tensor:
        """fp32 [vocab]: what `forward` must give for the last of `tokens`."""
        return self.table[state_after(tokens)]


def state_after(tokens: list[int]) -> int:
    return sum((token + 1) * (index + 3) ** 2 for index, token in enumerate(tokens)) % NUM_STATES
