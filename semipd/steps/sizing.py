"""How large a KV pool is. Pure: numbers in, numbers out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from semipd.core.errors import SemipdError
from semipd.core.plan import blocks_for


@dataclass(frozen=True, kw_only=True)
class KvDemand(ABC):
    """What settings and checkpoint ask for; a device adds what else takes its memory.

    Attributes:
        block_size: tokens per KV block. block_bytes: of one in all layers.
        kv_bytes, kv_fraction, max_num_blocks, max_model_len: see EngineSettings; `kv_fraction` is of what the
            rest leaves.
    """

    block_size: int
    block_bytes: int
    kv_bytes: int
    kv_fraction: float
    max_num_blocks: int
    max_model_len: int

    @property
    @abstractmethod
    def left_bytes(self) -> int:
        """What a KV pool may take; negative when not even the rest fits."""

    @abstractmethod
    def table(self, num_blocks: int) -> str:
        """Where the memory goes with a pool of so many blocks; several lines."""

    @property
    def advised_bytes(self) -> int:
        """The largest pool that a hint names."""
        return self.left_bytes

    @property
    def blocks_per_seq(self) -> int:
        return blocks_for(self.max_model_len, self.block_size)

    @property
    def least_blocks(self) -> int:
        """One longest sequence, and block 0 (padding)."""
        return self.blocks_per_seq + 1

    def default_blocks(self) -> int:
        """Without `kv_bytes`."""
        return int(max(0, self.left_bytes) * self.kv_fraction) // self.block_bytes

    def wanted_blocks(self) -> int:
        blocks = self.kv_bytes // self.block_bytes if self.kv_bytes else self.default_blocks()
        return min(blocks, self.max_num_blocks) if self.max_num_blocks else blocks

    def fits(self) -> bool:
        blocks = self.wanted_blocks()
        return 2 <= self.least_blocks <= blocks and blocks * self.block_bytes <= self.left_bytes


def num_kv_blocks(demand: KvDemand) -> int:
    """Blocks of the pool, block 0 (padding) included: what `kv_bytes` asks for, else the device's default;
    `max_num_blocks` caps both. Never fewer than one longest sequence needs.

    Raises SemipdError(`insufficient_memory`) with the table and values that would fit.
    """
    blocks = demand.wanted_blocks()
    if not demand.fits():
        table = demand.table(max(blocks, demand.least_blocks))
        message = f"The KV pool does not fit ({_in_force(demand)}):\n{table}\n"
        raise SemipdError("insufficient_memory", message, _hint(demand))
    return blocks


def _in_force(demand: KvDemand) -> str:
    pool = f"kv_bytes {demand.kv_bytes}" if demand.kv_bytes else f"kv_fraction {demand.kv_fraction}"
    cap = f", max_num_blocks {demand.max_num_blocks}" if demand.max_num_blocks else ""
    return f"{pool}{cap}, max_model_len {demand.max_model_len}"


def _hint(demand: KvDemand) -> str:
    """Alternatives with as few settings as possible; each has been tried and is enough by itself."""
    working = [changes for changes in _candidates(demand) if replace(demand, **changes).fits()]
    if not working:
        return "Use a smaller model or dtype bfloat16, lower max_num_seqs, or free memory that others use."
    fewest = min(len(changes) for changes in working)
    options = [_in_words(demand, changes) for changes in working if len(changes) == fewest]
    return f"Set {' or '.join(dict.fromkeys(options))}."


def _candidates(demand: KvDemand) -> list[dict[str, int]]:
    fitting = max(0, demand.advised_bytes) // demand.block_bytes

    def shorter(changes: dict[str, int]) -> dict[str, int]:
        blocks = min(fitting, replace(demand, **changes).wanted_blocks())
        return {**changes, "max_model_len": max(0, blocks - 1) * demand.block_size}

    pool = {"kv_bytes": fitting * demand.block_bytes}
    cap = {"max_num_blocks": demand.least_blocks}
    both = pool | {"max_num_blocks": fitting}
    capped = [cap, pool | cap, shorter(both)] if demand.max_num_blocks else []
    return [pool, shorter({}), shorter(pool), *capped]


def _in_words(demand: KvDemand, changes: dict[str, int]) -> str:
    if changes.keys() == {"kv_bytes"}:
        return f"kv_bytes to {demand.least_blocks * demand.block_bytes} .. {changes['kv_bytes']}"
    sizes = {"max_model_len": "at most ", "max_num_blocks": "at least ", "kv_bytes": "at most "}
    return " and ".join(f"{name} to {sizes[name]}{value}" for name, value in changes.items())
