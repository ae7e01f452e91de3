"""Attention of one query token per sequence over the paged pool, in the pool's own order.

Queries come to the blocks instead of the context to the queries: every block that a sequence holds is an
*entry*, entries are sorted by block, and neighbouring blocks form runs that a batched matmul reads as views
of the pool. The softmax runs over the entries of each sequence, as in split-KV decoding ("flash-decoding",
github.com/Dao-AILab/flash-attention). Isolated blocks are copied and treated alike.

Microseconds of CPU time per layer, lower quartile (one thread of an EPYC with avx512_bf16, torch 2.13, 8
query and 4 KV heads of 64, blocks in random order in a pool that is all in use, malloc told to keep freed
memory):

    sequences x context       1x128  1x512  1x2048  4x128  4x512  8x512  32x512
    fp32  pool order            112    197     512    170    483    894    3331
          all blocks copied     112    216     631    208    613   1179    5638
          SDPA per sequence      50    152     694    214    770   1755    6391
    bf16  pool order            183    247     440    252    446    724    2657
          all blocks copied     180    248     503    247    529    857    3346
          SDPA per sequence      50    121     501    191    622   1263    5008

SDPA over one padded batch was slower than per sequence. ops.py chooses between pool order and SDPA.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]

MIN_RUN_BYTES = 524_288
"""Runs with fewer bytes of keys are copied, together: a bmm call costs 20 us in bf16 (6 in fp32) before any
work."""

MAX_GAP_BYTES = 16_384
"""Up to this many bytes of foreign keys between two of our blocks are computed along and dropped."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pool blocks [first_block, first_block + num_blocks) as entries [first_entry, ...)."""

    first_entry: int
    first_block: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class EntryLayout:
    """Entries of the runs, then of the copies. A run's foreign blocks are entries that no pair points to.

    Attributes:
        runs: read in place.
        copied_blocks: [C] int64, blocks of entries num_entries - C and up.
        entry_of_pair: [P] int64, aligned with the (sequence, block) pairs laid out.
    """

    runs: list[Run]
    copied_blocks: Ints
    entry_of_pair: Ints
    num_entries: int


def lay_out(blocks: Ints, block_bytes: int) -> EntryLayout:
    """Find the runs among `blocks` [P], in which a block may stand several times (shared prefixes).

    Args:
        block_bytes: keys of one block in one layer.
    """
    max_step = 1 + MAX_GAP_BYTES // block_bytes
    order, keys = _sort_by_occurrence(blocks, max_step)
    first_pair = np.flatnonzero(np.diff(keys, prepend=keys[0] - max_step - 1) > max_step)
    num_pairs = np.diff(first_pair, append=keys.size)
    span = keys[first_pair + num_pairs - 1] - keys[first_pair] + 1
    is_run = num_pairs * block_bytes >= MIN_RUN_BYTES
    run_span = span * is_run
    first_entry = np.cumsum(run_span) - run_span
    num_run_entries = int(run_span.sum())

    in_run = np.repeat(is_run, num_pairs)
    in_place = np.repeat(first_entry - keys[first_pair], num_pairs) + keys
    entries = np.where(in_run, in_place, num_run_entries - 1 + np.cumsum(~in_run))
    entry_of_pair = np.empty_like(entries)
    entry_of_pair[order] = entries
    sorted_blocks = blocks[order]
    runs = np.stack((first_entry, sorted_blocks[first_pair], span), axis=1)[is_run]
    copied_blocks = sorted_blocks[~in_run]
    return EntryLayout(
        [Run(*run) for run in runs.tolist()],
        copied_blocks,
        entry_of_pair,
        num_run_entries + copied_blocks.size,
    )


def _sort_by_occurrence(blocks: Ints, max_step: int) -> tuple[Ints, Ints]:
    """Order by (how often the block came before, block), and keys that count blocks within one occurrence and
    jump by more than `max_step` to the next, so that every reader of a shared prefix has a run of its own."""
    order = np.argsort(blocks, kind="stable")
    keys = blocks[order]
    occurrence = np.arange(keys.size) - np.searchsorted(keys, keys)
    if not occurrence.any():
        return order, keys
    keys = keys + occurrence * (keys[-1] + max_step + 1)
    again = np.argsort(keys)
    return order[again], keys[again]


class PagedDecode:
    """The indices of one step for its S sequences, used by every layer.

    Args:
        tables: [S, W] block tables; kv_lens: [S] tokens with this step's. Both in host memory.
        kv_pool: see KvLayout.pool_shape. The unused slots of each sequence's last block are cleared in it:
            whatever they held (NaN, say) would pass through a weight of zero.
    """

    def __init__(self, tables: Ints, kv_lens: Ints, kv_pool: Tensor) -> None:
        def on_device(values: Ints) -> Tensor:
            return torch.from_numpy(values).to(kv_pool.device)

        self._num_kv_heads = kv_pool.shape[3]
        self._block_size = block_size = kv_pool.shape[4]
        self._num_seqs = tables.shape[0]
        num_blocks = -(-kv_lens // block_size)
        held = np.arange(tables.shape[1]) < num_blocks[:, None]
        layout = lay_out(tables[held], kv_pool[0, 0, 0].nbytes)
        self._runs, self._num_entries = layout.runs, layout.num_entries
        self._copied_blocks = on_device(layout.copied_blocks)
        self._copies = kv_pool.new_empty(layout.copied_blocks.size, *kv_pool.shape[3:])
        # Foreign blocks belong to sequence S, a row that is computed and dropped.
        owner = np.full(layout.num_entries, self._num_seqs)
        owner[layout.entry_of_pair] = np.repeat(np.arange(self._num_seqs), num_blocks)
        self._owner = on_device(owner)
        self._query_row = on_device(np.minimum(owner, self._num_seqs - 1))

        used = kv_lens - (num_blocks - 1) * block_size
        seq, offset = np.nonzero(np.arange(block_size) >= used[:, None])
        last_entry = layout.entry_of_pair[np.cumsum(num_blocks) - 1]
        last_block = tables[np.arange(self._num_seqs), num_blocks - 1]
        self._unused_entry, self._unused_offset = on_device(last_entry[seq]), on_device(offset)
        kv_pool[:, 1][:, on_device(last_block[seq]), :, self._unused_offset] = 0

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float, out: Tensor) -> None:
        """`q`, `out` [S, heads, head_dim]; `keys`, `values` [num_blocks, kv heads, slots, head_dim], this
        step's KV already written."""
        num_seqs, num_heads, head_dim = q.shape
        group = num_heads // self._num_kv_heads
        spread = q.reshape(num_seqs, -1).index_select(0, self._query_row).view(-1, group, head_dim)
        scores = q.new_empty(spread.shape[0], group, self._block_size)
        for tiles, part in self._tiles(keys):
            torch.bmm(spread[part], tiles.transpose(1, 2), out=scores[part])
        weights, total = self._softmax(scores.view(-1, num_heads, self._block_size), scale)
        weights = weights.to(q.dtype).view_as(scores)
        partial = torch.empty_like(spread)
        for tiles, part in self._tiles(values):
            torch.bmm(weights[part], tiles, out=partial[part])
        rows = partial.view(-1, num_heads * head_dim).float()
        sums = rows.new_zeros(num_seqs + 1, num_heads * head_dim).index_add_(0, self._owner, rows)
        torch.div(sums[:num_seqs].view(q.shape), total[:, :, None], out=out)

    def _tiles(self, plane: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """[tiles, slots, head_dim] of each run and of the copies; which (entry, kv head) rows they are."""
        heads = self._num_kv_heads
        for run in self._runs:
            tiles = plane.narrow(0, run.first_block, run.num_blocks).flatten(0, 1)
            yield tiles, slice(run.first_entry * heads, (run.first_entry + run.num_blocks) * heads)
        if num_copied := self._copied_blocks.numel():
            tiles = torch.index_select(plane, 0, self._copied_blocks, out=self._copies).flatten(0, 1)
            yield tiles, slice((self._num_entries - num_copied) * heads, self._num_entries * heads)

    def _softmax(self, scores: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Weights [E, heads, block size] float32 before division, and their sums [S, heads]."""
        num_rows, num_heads = self._num_seqs + 1, scores.shape[1]
        logits = scores.float().mul_(scale)
        logits[self._unused_entry, :, self._unused_offset] = -torch.inf
        index = self._owner[:, None].expand(-1, num_heads)
        top = logits.new_full((num_rows, num_heads), -torch.inf).scatter_reduce_(
            0, index, logits.amax(2), "amax"
        )
        weights = logits.sub_(top.index_select(0, self._owner).unsqueeze(2)).exp_()
        total = logits.new_zeros(num_rows, num_heads).index_add_(0, self._owner, weights.sum(2))
        return weights, total[: self._num_seqs]
