"""What takes the device's memory, for the size of the KV pool and the table at start-up. Pure."""

from dataclasses import dataclass

from semipd.steps.sizing import KvDemand

_GIB = 2**30
DEFAULT_KV_FRACTION = 0.9


@dataclass(frozen=True, kw_only=True)
class GpuMemoryDemand(KvDemand):
    """Attributes:
    total_bytes, free_bytes: of the device, all processes counted, after weights and buffers were allocated.
    weights_bytes, buffers_bytes: allocated: one copy of the weights, both lanes' working memory.
    graphs_bytes: what capturing the decode graphs will take.
    transients_bytes: what the largest steps of both lanes allocate for themselves, where no graph runs them.
    reserve_bytes: stays free, for libraries and the allocator while serving.
    """

    total_bytes: int
    free_bytes: int
    weights_bytes: int
    buffers_bytes: int
    graphs_bytes: int
    transients_bytes: int
    reserve_bytes: int

    @property
    def left_bytes(self) -> int:
        return self.free_bytes - self.graphs_bytes - self.transients_bytes - self.reserve_bytes

    def rows(self, num_blocks: int) -> dict[str, int]:
        """Bytes by purpose, for DeviceInfo.memory; they add up to the device's memory. `free` is negative
        when the pool does not fit."""
        allocated = self.weights_bytes + self.buffers_bytes
        pool_bytes = num_blocks * self.block_bytes
        return {
            "weights": self.weights_bytes,
            "buffers": self.buffers_bytes,
            "graphs": self.graphs_bytes,
            "transients": self.transients_bytes,
            "kv_pool": pool_bytes,
            "reserve": self.reserve_bytes,
            "others": self.total_bytes - self.free_bytes - allocated,
            "free": self.left_bytes - pool_bytes,
        }

    def table(self, num_blocks: int) -> str:
        notes = {
            "graphs": "estimate",
            "transients": "steps with log-probabilities, at their largest",
            "kv_pool": f"{num_blocks} blocks of {self.block_size} tokens, {self.block_bytes} bytes each",
            "others": "CUDA context, libraries, other processes",
        }
        rows = {**self.rows(num_blocks), "total": self.total_bytes}
        lines = [
            f"  {name:<10}{num_bytes / _GIB:>9.2f} GiB  {notes.get(name, '')}".rstrip()
            for name, num_bytes in rows.items()
        ]
        return "\n".join(lines)
