"""How large the KV pool is. Pure: numbers in, numbers out."""

from dataclasses import dataclass

from semipd.core.errors import SemipdError
from semipd.core.plan import BLOCK_SIZE, blocks_for
from semipd.devices.cpu.memory import Available

DEFAULT_KV_BYTES = 4 * 2**30
DEFAULT_KV_FRACTION = 0.5
"""Without `kv_bytes` no more than this (or one longest sequence): reserving memory takes time at start-up."""


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    """What the settings and the checkpoint ask for. `worker_bytes` is an estimate for both workers."""

    weights_bytes: int
    worker_bytes: int
    block_bytes: int
    max_model_len: int
    max_num_seqs: int
    kv_bytes: int
    kv_fraction: float
    max_num_blocks: int

    @property
    def blocks_per_seq(self) -> int:
        return blocks_for(self.max_model_len)

    @property
    def fixed_bytes(self) -> int:
        return self.weights_bytes + self.worker_bytes


def num_kv_blocks(demand: MemoryDemand, available: Available) -> int:
    """Blocks of the pool, block 0 (padding) included: what `kv_bytes` asks for, or a share of what is left,
    but then no more than `max_num_seqs` longest sequences need. Never fewer than one of them needs.

    Raises SemipdError(`insufficient_memory`) with a table and the values that would fit.
    """
    left_bytes = available.num_bytes - demand.fixed_bytes
    least = demand.blocks_per_seq + 1
    if demand.kv_bytes:
        blocks = demand.kv_bytes // demand.block_bytes
    else:
        share_bytes = int(left_bytes * demand.kv_fraction)
        cap_bytes = max(DEFAULT_KV_BYTES, least * demand.block_bytes)
        blocks = min(
            demand.max_num_seqs * demand.blocks_per_seq + 1,
            min(share_bytes, cap_bytes) // demand.block_bytes,
        )
    if demand.max_num_blocks:
        blocks = min(blocks, demand.max_num_blocks)
    if blocks < least or blocks * demand.block_bytes > left_bytes:
        table = _table(demand, available, max(blocks, least))
        raise SemipdError("insufficient_memory", table, _hint(demand, available))
    return blocks


def _table(demand: MemoryDemand, available: Available, blocks: int) -> str:
    rows = [
        ("weights", demand.weights_bytes, ""),
        ("two workers", demand.worker_bytes, "estimate"),
        ("KV pool wanted", blocks * demand.block_bytes, f"{blocks} blocks of {demand.block_bytes} bytes"),
        ("available", available.num_bytes, available.source),
    ]
    lines = [f"  {name:<15}{size / 2**30:>9.2f} GiB  {note}".rstrip() for name, size, note in rows]
    in_force = [f"kv_bytes {demand.kv_bytes}" if demand.kv_bytes else f"kv_fraction {demand.kv_fraction}"]
    in_force += [f"max_num_blocks {demand.max_num_blocks}"] if demand.max_num_blocks else []
    in_force += [f"max_model_len {demand.max_model_len}", f"max_num_seqs {demand.max_num_seqs}"]
    return "\n".join([f"The KV pool does not fit ({', '.join(in_force)}):", *lines, ""])


def _hint(demand: MemoryDemand, available: Available) -> str:
    """Each alternative it names is enough by itself."""
    least, block_bytes = demand.blocks_per_seq + 1, demand.block_bytes
    left_bytes = available.num_bytes - demand.fixed_bytes
    # A tenth is left for what the estimate misses.
    safe = int(left_bytes * 0.9) // block_bytes
    if safe < 2:
        return "Weights and workers alone do not fit: use a smaller model, dtype bfloat16, or free memory."
    if least > safe:
        return f"Set max_model_len to at most {(safe - 1) * BLOCK_SIZE} and kv_bytes to {safe * block_bytes}."
    if demand.max_num_blocks and demand.max_num_blocks < least:
        return f"Set max_num_blocks to at least {least}."
    options = [f"kv_bytes to {least * block_bytes} .. {safe * block_bytes}"]
    budget = (demand.kv_bytes or int(left_bytes * demand.kv_fraction)) // block_bytes
    if 2 <= budget <= safe:
        options.append(f"max_model_len to at most {(budget - 1) * BLOCK_SIZE}")
    return f"Set {' or '.join(options)}."
