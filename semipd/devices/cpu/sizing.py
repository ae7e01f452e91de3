"""What takes memory on the CPU device. Pure: numbers in, numbers out."""

from dataclasses import dataclass

from semipd.devices.cpu.memory import Available
from semipd.steps.sizing import KvDemand

BLOCK_SIZE = 16
"""Tokens per KV block."""

DEFAULT_KV_BYTES = 4 * 2**30
DEFAULT_KV_FRACTION = 0.5
"""Without `kv_bytes` no more than this (or one longest sequence): reserving memory takes time at start-up."""

_ADVISED_FRAC = 0.9
"""The rest is for what the estimate of the workers misses."""


@dataclass(frozen=True, kw_only=True)
class HostMemoryDemand(KvDemand):
    """`worker_bytes` is an estimate for both workers."""

    available: Available
    weights_bytes: int
    worker_bytes: int
    max_num_seqs: int

    @property
    def left_bytes(self) -> int:
        return self.available.num_bytes - self.weights_bytes - self.worker_bytes

    @property
    def advised_bytes(self) -> int:
        return int(self.left_bytes * _ADVISED_FRAC)

    def default_blocks(self) -> int:
        """No more than `max_num_seqs` longest sequences need."""
        cap = max(DEFAULT_KV_BYTES // self.block_bytes, self.least_blocks)
        return min(super().default_blocks(), cap, self.max_num_seqs * self.blocks_per_seq + 1)

    def table(self, num_blocks: int) -> str:
        pool_bytes = num_blocks * self.block_bytes
        rows = [
            ("weights", self.weights_bytes, ""),
            ("two workers", self.worker_bytes, f"estimate, max_num_seqs {self.max_num_seqs}"),
            ("KV pool wanted", pool_bytes, f"{num_blocks} blocks of {self.block_bytes} bytes"),
            ("available", self.available.num_bytes, self.available.source),
        ]
        return "\n".join(
            f"  {name:<15}{size / 2**30:>9.2f} GiB  {note}".rstrip() for name, size, note in rows
        )
