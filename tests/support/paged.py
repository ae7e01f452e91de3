"""Drives a CpuNetwork by hand: sequences with block tables, merged steps, a poisoned pool."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import TORCH_DTYPES, load_weights, weight_views
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.network.config import DTypeName, ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.rows import ChunkRows, DecodeRows, StepRows

# Several threads on tiny matrices, on cores that others use too, spin more than they work.
torch.set_num_threads(1)

BLOCK_SIZE = 16


@dataclass
class Sequence:
    """`computed` tokens have their KV in the pool."""

    token_ids: list[int]
    block_table: list[int]
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)  # one [length, vocab] per chunk


class PagedModel:
    """A decoder over a pool full of NaN, blocks handed out by the test."""

    def __init__(self, folder: Path, num_blocks: int = 64, dtype: DTypeName = "float32") -> None:
        self.config = load_model_config(folder)
        self.pool = torch.full(
            KvLayout.of(self.config, BLOCK_SIZE).pool_shape(num_blocks), torch.nan, dtype=TORCH_DTYPES[dtype]
        )
        self.decoder = CpuNetwork(self.config, loaded_weights(folder, self.config, dtype), self.pool)

    def step(self, work: list[tuple[Sequence, int]]) -> None:
        """Compute the next `length` tokens of each sequence in one merged batch; logits of every row."""
        work = sorted(work, key=lambda entry: entry[1] > 1)
        rows = step_rows(work)
        logits = self.decoder.forward(rows, torch.arange(rows.num_rows)).logits
        for (sequence, length), own in zip(work, logits.split([length for _, length in work]), strict=True):
            sequence.logits.append(own)
            sequence.computed += length

    def poison_unused_slots(self, sequence: Sequence) -> None:
        """NaN after the newest token of the last block in use."""
        used = sequence.computed % BLOCK_SIZE
        if used:
            self.pool[:, :, sequence.block_table[sequence.computed // BLOCK_SIZE], :, used:] = torch.nan


def loaded_weights(folder: Path, config: ModelConfig, dtype: DTypeName = "float32") -> dict[str, Tensor]:
    layout = plan_weights(config, dtype)
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    load_weights(folder, config, layout, buffer, lambda done, total: None)
    return weight_views(layout, buffer)


def step_rows(work: list[tuple[Sequence, int]]) -> StepRows:
    """Sequences with one row stand first, and decode."""
    lengths = [length for _, length in work]
    count = sum(length == 1 for length in lengths)
    assert max(lengths[:count], default=1) == 1, lengths
    token_ids, positions, slots = [], [], []
    for sequence, length in work:
        for position in range(sequence.computed, sequence.computed + length):
            token_ids.append(sequence.token_ids[position])
            positions.append(position)
            slots.append(sequence.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
    width = max(len(sequence.block_table) for sequence, _ in work)
    tables = torch.tensor([s.block_table + [0] * (width - len(s.block_table)) for s, _ in work])
    kv_lens = [sequence.computed + length for sequence, length in work]
    return StepRows(
        torch.tensor(token_ids),
        torch.tensor(positions),
        torch.tensor(slots),
        DecodeRows(tables[:count], torch.tensor(kv_lens[:count])) if count else None,
        ChunkRows.unplanned(tables[count:], lengths[count:], kv_lens[count:]) if count < len(work) else None,
    )
