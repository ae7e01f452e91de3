"""What a lane keeps on the device about its residents: one slot each, changed by small deltas.

A slot holds the sequence's newest token and its index (both advanced on the device, so that the next step
need not wait for the host), its sampling parameters and its block table. Slot 0 belongs to nobody: padding
rows of a decode graph compute its token 0 at position 0 and write their KV to the padding block.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from semipd.core.plan import PADDING_BLOCK, Join
from semipd.core.sampling import SamplingParams

PADDING_SLOT = 0


class Column(IntEnum):
    """Numbers of a slot, int32; those named `*_BITS` hold the bits of a float32 or of an unsigned word."""

    TOKEN = 0
    POSITION = 1
    TOP_K = 2
    TEMPERATURE_BITS = 3
    TOP_P_BITS = 4
    MIN_P_BITS = 5
    REPETITION_BITS = 6
    FREQUENCY_BITS = 7
    PRESENCE_BITS = 8
    SEED_LOW_BITS = 9
    SEED_HIGH_BITS = 10


Delta = dict[int, int]
"""Index into `SlotState.flat` to new value: each index once, so the order of writing cannot matter."""


class SlotState:
    """`columns` int32 [columns, slots], each contiguous; `tables` int32 [slots, table width]; both are views
    of `flat`."""

    def __init__(self, num_slots: int, table_width: int, device: torch.device) -> None:
        num_column_cells = len(Column) * num_slots
        self.num_slots = num_slots
        self.table_width = table_width
        self.flat = torch.zeros(num_column_cells + num_slots * table_width, dtype=torch.int32, device=device)
        self.columns = self.flat[:num_column_cells].view(len(Column), num_slots)
        self.tables = self.flat[num_column_cells:].view(num_slots, table_width)
        assert PADDING_BLOCK == 0, "a zeroed table must point at the padding block"

    @property
    def max_delta(self) -> int:
        """Entries of a delta that fills every slot."""
        return self.flat.numel()

    def join(self, delta: Delta, slot: int, join: Join) -> None:
        values = _column_values(join)
        for column in Column:
            delta[column * self.num_slots + slot] = values[column]
        self.add_blocks(delta, slot, 0, join.block_table)

    def add_blocks(self, delta: Delta, slot: int, start: int, blocks: Sequence[int]) -> None:
        """Entries `start`, `start` + 1, ... of the slot's block table."""
        assert start + len(blocks) <= self.table_width, (start, len(blocks), self.table_width)
        first = len(Column) * self.num_slots + slot * self.table_width + start
        delta.update(enumerate(blocks, first))

    def apply(self, indices: Tensor, values: Tensor) -> None:
        """A delta, as int32 tensors on the device."""
        self.flat.scatter_(0, indices.long(), values)

    def advance(self, slots: Tensor, tokens: Tensor) -> None:
        """`tokens` int32 [R] are the newest of the sequences in `slots` int64 [R], each named once."""
        self.columns[Column.TOKEN].scatter_(0, slots, tokens)
        self.columns[Column.POSITION].index_add_(0, slots, torch.ones_like(tokens))


def _column_values(join: Join) -> dict[Column, int]:
    params = join.params
    return {
        Column.TOKEN: join.token_ids[-1],
        Column.POSITION: len(join.token_ids) - 1,
        Column.TOP_K: min(params.top_k, 2**31 - 1),
        Column.SEED_LOW_BITS: _signed(params.seed & 0xFFFFFFFF),
        Column.SEED_HIGH_BITS: _signed(params.seed >> 32),
    } | {column: float_bits(value) for column, value in _floats(params).items()}


def _floats(params: SamplingParams) -> dict[Column, float]:
    return {
        Column.TEMPERATURE_BITS: params.temperature,
        Column.TOP_P_BITS: params.top_p,
        Column.MIN_P_BITS: params.min_p,
        Column.REPETITION_BITS: params.repetition_penalty,
        Column.FREQUENCY_BITS: params.frequency_penalty,
        Column.PRESENCE_BITS: params.presence_penalty,
    }


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def float_bits(value: float) -> int:
    """Of `value` as float32; beyond its range that is infinity."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    bits: int = struct.unpack("<i", packed)[0]
    return bits
