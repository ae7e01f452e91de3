"""What one forward pass computes: decode rows, then prefill chunks end to end.

Tensors are on the device; their integers are int32 on a GPU and int64 on a CPU.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semipd.core.plan import blocks_for


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """D sequences with one query token each.

    Attributes:
        tables: [D, W]; entries past a context are never used.
        kv_lens: [D] tokens, this step's included; at least 1.
        workspace: from Ops.decode_workspace; empty: attention does without.
    """

    tables: Tensor
    kv_lens: Tensor
    workspace: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """`work`: int32, goes to the device with the step; `details`: stays on the host."""

    work: np.ndarray[Any, np.dtype[np.int32]]
    details: object


NO_PLAN = ChunkPlan(np.empty(0, dtype=np.int32), None)
"""Of operations that read lengths on the host."""


class PassSize(NamedTuple):
    """What a captured pass over chunks is made for; a step that is replayed in it may have less."""

    num_rows: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """S prefill chunks. What a launch needs is also known on the host: no grid waits for the device.

    Attributes:
        tables: [S, W].
        query_starts: [S + 1], row of each chunk's first token, counted from the first chunk's.
        kv_lens: [S] tokens, this step's included.
        work: int32, the device's part of `plan`.
        plan: how attention cuts the chunks; made by Ops.plan_chunks, and known to those ops only.
        host_query_lens, host_kv_lens: the same on the host.
        context: [2, num_kv, tokens, head_dim], where attention may copy a context to; None where it reads the
            pool.
    """

    tables: Tensor
    query_starts: Tensor
    kv_lens: Tensor
    work: Tensor
    plan: ChunkPlan
    host_query_lens: list[int]
    host_kv_lens: list[int]
    context: Tensor | None = None

    @classmethod
    def unplanned(cls, tables: Tensor, query_lens: list[int], kv_lens: list[int]) -> "ChunkRows":
        """For operations that need no plan."""
        starts = tables.new_tensor([*accumulate(query_lens, initial=0)])
        work = tables.new_empty(0)
        return cls(tables, starts, tables.new_tensor(kv_lens), work, NO_PLAN, query_lens, kv_lens)


@dataclass(frozen=True, slots=True)
class StepRows:
    """T rows: those of `decode`, then those of `chunks`; either may be missing, not both.

    Attributes:
        token_ids, positions: [T].
        slots: int64 [T], block * block size + offset: where each row's KV is written.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    decode: DecodeRows | None
    chunks: ChunkRows | None

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_decode(self) -> int:
        return 0 if self.decode is None else self.decode.kv_lens.shape[0]

    @classmethod
    def of_prompt(cls, token_ids: list[int], block_size: int) -> "StepRows":
        """A whole prompt in one chunk, on the CPU; its KV goes to the blocks from 0 on."""
        everything, length = torch.arange(len(token_ids)), [len(token_ids)]
        table = torch.arange(blocks_for(len(token_ids), block_size))
        chunks = ChunkRows.unplanned(table[None], length, length)
        return cls(torch.tensor(token_ids), everything, everything, None, chunks)


class PassResult(NamedTuple):
    """Attributes:
    logits: float32 [R, vocab] of the rows wanted.
    unsound: bool, one per row of the chunks, None without chunks: its attention is not finite. In each layer
        a row attends to itself, so in all others the KV that was written is.
    """

    logits: Tensor
    unsound: Tensor | None
