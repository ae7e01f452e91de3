"""Device memory that sampling works in; nothing in it outlives a call."""

from typing import NamedTuple

import torch
from torch import Tensor

from semipd_kernels.sampling.shape import COARSE_BINS, FINE_BINS, STATE_FIELDS, num_tiles


class SamplingMemory(NamedTuple):
    """The tensors of a workspace."""

    adjusted: Tensor
    tile_best: Tensor
    tile_token: Tensor
    tile_mass: Tensor
    tile_ties: Tensor
    best: Tensor
    state: Tensor
    coarse_count: Tensor
    coarse_mass: Tensor
    fine_count: Tensor
    fine_mass: Tensor


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
        tiles = num_tiles(vocab_size)
        self.adjusted = empty(max(num_slots, 1), vocab_size, dtype=torch.float32)
        self.tile_best = empty(num_rows, tiles, dtype=torch.float32)
        self.tile_token = empty(num_rows, tiles, dtype=torch.int32)
        self.tile_mass = empty(num_rows, tiles, dtype=torch.int64)
        self.tile_ties = empty(num_rows, tiles, dtype=torch.int32)
        self.best = empty(num_rows, dtype=torch.float32)
        self.state = empty(num_rows, STATE_FIELDS, dtype=torch.int64)
        self.coarse_count = empty(num_rows, COARSE_BINS, dtype=torch.int32)
        self.coarse_mass = empty(num_rows, COARSE_BINS, dtype=torch.int64)
        self.fine_count = empty(num_rows, FINE_BINS, dtype=torch.int32)
        self.fine_mass = empty(num_rows, FINE_BINS, dtype=torch.int64)
