"""A decoder whose logits are an exact function of the tokens it finds in the KV pool.

Integers only, so that any chunking or batching must give the same bits; a wrong slot, block table or
position gives other logits.
"""

import torch

from semipd.core.plan import BLOCK_SIZE
from semipd.network.batch import BatchInput

NUM_STATES = 9973


class ToyDecoder:
    """Every step checks its batch. `pool` may be shared between decoders, like the real one."""

    def __init__(self, vocab_size: int, num_blocks: int, pool: torch.Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(vocab_size)
        self.table = torch.randn(NUM_STATES, vocab_size, generator=generator)
        # Poisoned: reading a slot that nobody wrote gives nonsense.
        self.pool = torch.full((num_blocks * BLOCK_SIZE,), -(10**12)) if pool is None else pool
        self.steps: list[BatchInput] = []

    def forward(self, batch: BatchInput) -> torch.Tensor:
        self.steps.append(batch)
        assert (
            sum(batch.query_lens) == len(batch.token_ids) == len(batch.positions) == len(batch.slot_mapping)
        )
        assert len(batch.query_lens) == len(batch.kv_lens) == len(batch.block_tables)
        assert batch.block_tables.shape[1] * BLOCK_SIZE >= max(batch.kv_lens)
        assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping)
        self.pool[batch.slot_mapping] = batch.token_ids
        states: list[int] = []
        row = 0
        for query_len, kv_len, blocks in zip(
            batch.query_lens, batch.kv_lens, batch.block_tables, strict=True
        ):
            slots = [int(blocks[i // BLOCK_SIZE]) * BLOCK_SIZE + i % BLOCK_SIZE for i in range(kv_len)]
            tokens = self.pool[slots].tolist()
            positions = batch.positions[row : row + query_len].tolist()
            assert positions == list(range(kv_len - query_len, kv_len))
            states += [state_after(tokens[: position + 1]) for position in positions]
            row += query_len
        return self.table[states][batch.logit_rows].clone()

    def logits_after(self, tokens: list[int]) -> torch.Tensor:
        """fp32 [vocab]: what `forward` must give for the last of `tokens`."""
        return self.table[state_after(tokens)]


def state_after(tokens: list[int]) -> int:
    return sum((token + 1) * (index + 3) ** 2 for index, token in enumerate(tokens)) % NUM_STATES
