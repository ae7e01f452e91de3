"""How the device's memory is used: the size of the KV pool, and the start-up table. Pure: numbers in, out."""

from dataclasses import dataclass, replace

from semipd.core.errors import SemipdError
from semipd.core.plan import BLOCK_SIZE, blocks_for

_GIB = 2**30
DEFAULT_KV_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    """Attributes:
    total_bytes, free_bytes: of the device, all processes counted, after weights and buffers were allocated.
    weights_bytes, buffers_bytes: allocated: one copy of the weights, both lanes' working memory.
    graphs_bytes: what capturing the decode graphs will take.
    reserve_bytes: stays free, for libraries and the allocator while serving.
    block_bytes: of one KV block in all layers.
    kv_bytes, kv_fraction, max_num_blocks, max_model_len: see EngineSettings; `kv_fraction` is of what the
        others leave.
    """

    total_bytes: int
    free_bytes: int
    weights_bytes: int
    buffers_bytes: int
    graphs_bytes: int
    reserve_bytes: int
    block_bytes: int
    kv_bytes: int
    kv_fraction: float
    max_num_blocks: int
    max_model_len: int

    @property
    def left_bytes(self) -> int:
        """What a KV pool may take; negative when not even graphs and reserve fit."""
        return self.free_bytes - self.graphs_bytes - self.reserve_bytes

    @property
    def least_blocks(self) -> int:
        """One longest sequence, and block 0 (padding)."""
        return blocks_for(self.max_model_len) + 1


def num_kv_blocks(demand: MemoryDemand) -> int:
    """Blocks of the pool, block 0 (padding) included: what `kv_bytes` asks for, else the share `kv_fraction`
    of what is left; `max_num_blocks` caps both. Never fewer than one longest sequence needs.

    Raises SemipdError(`insufficient_memory`) with the table and values that would fit.
    """
    blocks = _wanted_blocks(demand)
    if not _fits(demand):
        wanted = max(blocks, demand.least_blocks)
        message = f"The KV pool does not fit ({_in_force(demand)}):\n{memory_table(demand, wanted)}\n"
        raise SemipdError("insufficient_memory", message, _hint(demand))
    return blocks


def memory_rows(demand: MemoryDemand, num_blocks: int) -> dict[str, int]:
    """Bytes by purpose, for DeviceInfo.memory; they add up to the device's memory. `free` is negative when
    the pool does not fit."""
    allocated = demand.weights_bytes + demand.buffers_bytes
    pool_bytes = num_blocks * demand.block_bytes
    return {
        "weights": demand.weights_bytes,
        "buffers": demand.buffers_bytes,
        "graphs": demand.graphs_bytes,
        "kv_pool": pool_bytes,
        "reserve": demand.reserve_bytes,
        "others": demand.total_bytes - demand.free_bytes - allocated,
        "free": demand.left_bytes - pool_bytes,
    }


def memory_table(demand: MemoryDemand, num_blocks: int) -> str:
    """For the log, several lines."""
    notes = {
        "graphs": "estimate",
        "kv_pool": f"{num_blocks} blocks of {BLOCK_SIZE} tokens, {demand.block_bytes} bytes each",
        "others": "CUDA context, libraries, other processes",
    }
    rows = {**memory_rows(demand, num_blocks), "total": demand.total_bytes}
    lines = [
        f"  {name:<9}{num_bytes / _GIB:>9.2f} GiB  {notes.get(name, '')}".rstrip()
        for name, num_bytes in rows.items()
    ]
    return "\n".join(lines)


def _wanted_blocks(demand: MemoryDemand) -> int:
    budget_bytes = demand.kv_bytes or int(max(0, demand.left_bytes) * demand.kv_fraction)
    blocks = budget_bytes // demand.block_bytes
    return min(blocks, demand.max_num_blocks) if demand.max_num_blocks else blocks


def _in_force(demand: MemoryDemand) -> str:
    pool = f"kv_bytes {demand.kv_bytes}" if demand.kv_bytes else f"kv_fraction {demand.kv_fraction}"
    cap = f", max_num_blocks {demand.max_num_blocks}" if demand.max_num_blocks else ""
    return f"{pool}{cap}, max_model_len {demand.max_model_len}"


def _fits(demand: MemoryDemand) -> bool:
    blocks = _wanted_blocks(demand)
    return 2 <= demand.least_blocks <= blocks and blocks * demand.block_bytes <= demand.left_bytes


def _hint(demand: MemoryDemand) -> str:
    """Alternatives with as few settings as possible; each has been tried and is enough by itself."""
    working = [changes for changes in _candidates(demand) if _fits(replace(demand, **changes))]
    if not working:
        return "Use a smaller model, lower max_num_seqs, or stop the other processes on this GPU."
    fewest = min(len(changes) for changes in working)
    options = [_in_words(changes) for changes in working if len(changes) == fewest]
    return f"Set {' or '.join(dict.fromkeys(options))}."


def _candidates(demand: MemoryDemand) -> list[dict[str, int]]:
    fitting = max(0, demand.left_bytes) // demand.block_bytes

    def shorter(changes: dict[str, int]) -> dict[str, int]:
        blocks = min(fitting, _wanted_blocks(replace(demand, **changes)))
        return {**changes, "max_model_len": max(0, blocks - 1) * BLOCK_SIZE}

    pool = {"kv_bytes": min(demand.least_blocks, fitting) * demand.block_bytes}
    cap = {"max_num_blocks": demand.least_blocks}
    both = {"kv_bytes": fitting * demand.block_bytes, "max_num_blocks": fitting}
    return [pool, cap, shorter({}), pool | cap, shorter(pool), shorter(both)]


def _in_words(changes: dict[str, int]) -> str:
    sizes = {"max_model_len": "at most ", "max_num_blocks": "at least ", "kv_bytes": ""}
    return " and ".join(f"{name} to {sizes[name]}{value}" for name, value in changes.items())
