"""Device memory that sampling works in; nothing in it outlives a call."""

from typing import NamedTuple

import torch
from torch import Tensor

from semipd_kernels.sampling import shape


class SamplingMemory(NamedTuple):
    """The tensors of a workspace."""

    adjusted: Tensor
    tile_best: Tensor
    tile_token: Tensor
    tile_mass: Tensor
    tile_ties: Tensor
    limits: Tensor
    count_1: Tensor
    mass_1: Tensor
    count_2: Tensor
    mass_2: Tensor
    interval: Tensor
    candidates: Tensor


class SamplingWorkspace:
    """About 72 KiB a row, and 4 bytes a slot and token of the vocabulary. Calls sharing it must not overlap.

    Args:
        num_rows: largest batch.
        vocab_size: of the logits.
        num_slots: of the sequences that may be sampled.
    """

    def __init__(self, num_rows: int, vocab_size: int, num_slots: int, device: torch.device) -> None:
        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self.num_slots = num_slots
        tiles = shape.num_tiles(vocab_size)
        self.adjusted = empty(max(num_slots, 1), vocab_size, dtype=torch.float32)
        self.tile_best = empty(num_rows, tiles, dtype=torch.float32)
        self.tile_token = empty(num_rows, tiles, dtype=torch.int32)
        self.tile_mass = empty(num_rows, tiles, dtype=torch.int64)
        self.tile_ties = empty(num_rows, tiles, dtype=torch.int32)
        self.limits = empty(num_rows, 2, dtype=torch.int32)
        sums = (num_rows, tiles, shape.PIVOTS)
        self.count_1, self.count_2 = (empty(*sums, dtype=torch.int32) for _ in range(2))
        self.mass_1, self.mass_2 = (empty(*sums, dtype=torch.int64) for _ in range(2))
        self.interval = empty(num_rows, 4, dtype=torch.int64)
        self.candidates = empty(num_rows, shape.CANDIDATES, dtype=torch.int32)

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in SamplingMemory._fields)
