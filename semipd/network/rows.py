"""What one forward pass computes: decode rows, then prefill chunks end to end. Tensors are on the device."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """D sequences with one query token each.

    Attributes:
        tables: int32 [D, W]; entries past a context are never used.
        kv_lens: int32 [D] tokens, this step's included; at least 1.
    """

    tables: Tensor
    kv_lens: Tensor


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """`work`: int32, goes to the device with the step; `details`: stays on the host."""

    work: np.ndarray[Any, np.dtype[np.int32]]
    details: object


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """S prefill chunks. What a launch needs is also known on the host: no grid waits for the device.

    Attributes:
        tables: int32 [S, W].
        query_starts: int32 [S + 1], row of each chunk's first token, counted from the first chunk's.
        kv_lens: int32 [S] tokens, this step's included.
        work: int32, the device's part of `plan`.
        plan: how attention cuts the chunks; made by Ops.plan_chunks, and known to those ops only.
        host_query_lens, host_kv_lens: the same on the host.
    """

    tables: Tensor
    query_starts: Tensor
    kv_lens: Tensor
    work: Tensor
    plan: ChunkPlan
    host_query_lens: list[int]
    host_kv_lens: list[int]


@dataclass(frozen=True, slots=True)
class StepRows:
    """T rows: those of `decode`, then those of `chunks`; either may be missing, not both.

    Attributes:
        token_ids, positions: int32 [T].
        slots: int64 [T], block * 16 + offset: where each row's KV is written.
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
