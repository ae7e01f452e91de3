"""Attention of one step over the paged KV pool.

Prefill chunks run one by one, see chunk_attention.py. So do decode rows while they are few and short; more of
them run together in pool order. paged_decode.py has the measurements behind the two limits.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semipd.core.plan import BLOCK_SIZE, blocks_for
from semipd.devices.cpu.math.paged_decode import PagedDecode
from semipd.network.batch import BatchInput
from semipd.network.chunk_attention import attend_chunk

MAX_COPIED_SEQS = 4
MAX_COPIED_BYTES = 2**20
"""Decode rows of at most so many sequences, with so many bytes of keys and values in a layer, use SDPA."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows [start, stop) of one sequence, attending to its first `kv_len` tokens.

    `blocks` [B] int64 is None when the chunk is the whole context: the keys and values just computed are
    all there is, and nothing is read from the pool.
    """

    start: int
    stop: int
    kv_len: int
    blocks: Tensor | None


class StepAttention:
    """What all layers of one step share: where KV goes, who attends to what."""

    def __init__(self, batch: BatchInput, kv_pool: Tensor) -> None:
        self._pool = kv_pool
        self._write_blocks = batch.slot_mapping // BLOCK_SIZE
        self._write_offsets = batch.slot_mapping % BLOCK_SIZE
        self._scale = kv_pool.shape[-1] ** -0.5
        starts = [0, *accumulate(batch.query_lens)]
        assert starts[-1] == batch.token_ids.shape[0], (starts[-1], batch.token_ids.shape)
        together = self._in_pool_order(batch)
        self._chunks = [
            self._chunk(batch, seq, start)
            for seq, start in enumerate(starts[:-1])
            if not (together and batch.query_lens[seq] == 1)
        ]
        self._decode: PagedDecode | None = None
        if together:
            seqs = [seq for seq, length in enumerate(batch.query_lens) if length == 1]
            tables = batch.block_tables.numpy(force=True)[seqs]
            self._decode = PagedDecode(tables, np.array(batch.kv_lens)[seqs], kv_pool)
            self._decode_rows = torch.tensor([starts[seq] for seq in seqs], device=kv_pool.device)

    def __call__(self, layer_idx: int, q: Tensor, kv: Tensor) -> Tensor:
        """Write `kv` [T, 2, kv heads, head_dim] to the pool; attend with `q` [T, heads, head_dim].

        Returns [T, heads * head_dim] in q's dtype.
        """
        layer = self._pool[layer_idx]
        layer[:, self._write_blocks, :, self._write_offsets] = kv
        if self._decode is not None and not self._chunks:
            return self._decode.attend(q, layer[0], layer[1], self._scale).flatten(1)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if self._decode is not None:
            out[self._decode_rows] = self._decode.attend(
                q[self._decode_rows], layer[0], layer[1], self._scale
            )
        for chunk in self._chunks:
            out[chunk.start : chunk.stop] = self._attend_chunk(chunk, q[chunk.start : chunk.stop], kv, layer)
        return out.flatten(1)

    def _in_pool_order(self, batch: BatchInput) -> bool:
        """Whether the decode rows are too many or too long for SDPA one by one."""
        kv_lens = [
            kv_len for kv_len, length in zip(batch.kv_lens, batch.query_lens, strict=True) if length == 1
        ]
        token_bytes = self._pool[0, :, 0, :, 0].nbytes
        return len(kv_lens) > MAX_COPIED_SEQS or sum(kv_lens) * token_bytes > MAX_COPIED_BYTES

    def _chunk(self, batch: BatchInput, seq: int, start: int) -> _Chunk:
        length, kv_len = batch.query_lens[seq], batch.kv_lens[seq]
        stop, past = start + length, kv_len - length
        blocks = batch.block_tables[seq, : blocks_for(kv_len)] if past else None
        return _Chunk(start, stop, kv_len, blocks)

    def _attend_chunk(self, chunk: _Chunk, q: Tensor, kv: Tensor, layer: Tensor) -> Tensor:
        """`q` [length, heads, head_dim]; same shape back."""
        if chunk.blocks is None:
            keys, values = kv[chunk.start : chunk.stop].permute(1, 2, 0, 3)
        else:
            context = layer.index_select(1, chunk.blocks).transpose(1, 2).flatten(2, 3)
            keys, values = context[:, :, : chunk.kv_len]
        if q.shape[0] > 1:
            return attend_chunk(q, keys, values, self._scale)
        # A single query attends to everything, so the heads of a group can be rows. SDPA's own grouping
        # took 3 times longer in bf16 (503 us instead of 168 for 512 tokens).
        rows = q.view(1, keys.shape[0], -1, q.shape[2])
        return functional.scaled_dot_product_attention(
            rows, keys.unsqueeze(0), values.unsqueeze(0), scale=self._scale
        ).reshape(q.shape)
