"""What a lane keeps on the device about its residents: one slot each, changed by small deltas.

A slot holds the sequence's newest token and its index (both advanced on the device, so that the next step
need not wait for the host), its sampling parameters and its block table. Slot 0 belongs to nobody: padding
rows of a decode graph compute its token 0 at position 0 and write their KV to the padding block.
"""

import torch
from torch import Tensor

from semipd.core.plan import PADDING_BLOCK
from semipd.sampling.parameters import Column, advance_columns, column_values
from semipd.steps.residents import Resident

Delta = dict[int, int]
"""Index into `SlotState.flat` to new value: each index once, so the order of writing cannot matter."""


class SlotState:
    """`columns` int32 [columns, slots], each contiguous; `tables` int32 [slots, table width]; both are views
    of `flat`. `block_size`: tokens per entry of a table."""

    def __init__(self, num_slots: int, table_width: int, block_size: int, device: torch.device) -> None:
        num_column_cells = len(Column) * num_slots
        self.num_slots = num_slots
        self.table_width = table_width
        self.block_size = block_size
        self.flat = torch.zeros(num_column_cells + num_slots * table_width, dtype=torch.int32, device=device)
        self.columns = self.flat[:num_column_cells].view(len(Column), num_slots)
        self.tables = self.flat[num_column_cells:].view(num_slots, table_width)
        assert PADDING_BLOCK == 0, "a zeroed table must point at the padding block"

    @property
    def max_delta(self) -> int:
        """Entries of a delta that fills every slot."""
        return self.flat.numel()

    def join(self, delta: Delta, resident: Resident) -> None:
        """All of a resident, into its slot."""
        for column, value in enumerate(column_values(resident.params, resident.token_ids)):
            delta[column * self.num_slots + resident.slot] = value
        self.add_blocks(delta, resident, 0)

    def add_blocks(self, delta: Delta, resident: Resident, start: int) -> None:
        """Entries of its block table from `start` on."""
        table = resident.block_table
        assert len(table) <= self.table_width, (len(table), self.table_width)
        first = len(Column) * self.num_slots + resident.slot * self.table_width + start
        delta.update(enumerate(table[start:], first))

    def apply(self, indices: Tensor, values: Tensor) -> None:
        """A delta, as int32 tensors on the device."""
        self.flat.scatter_(0, indices.long(), values)

    def advance(self, slots: Tensor, tokens: Tensor) -> None:
        """See advance_columns."""
        advance_columns(self.columns, slots, tokens)
