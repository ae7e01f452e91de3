"""The KV cache's book-keeping: placing sequences on blocks, growing them, indexing what they computed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semipd.core.plan import blocks_for
from semipd.memory.pool import BlockPool
from semipd.memory.prefix import PrefixEntry, PrefixIndex


@dataclass(slots=True)
class Placement:
    """The blocks of one sequence. `indexed` are the entries of its leading blocks, root first."""

    namespace: str
    blocks: list[int]
    num_cached_tokens: int
    indexed: list[PrefixEntry]


class KVMemory:
    """One owner of every block. All methods are plain arithmetic; nothing here touches a device."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(block_size)
        self.num_cached_free = 0
        """Free blocks whose content can still be hit."""

    def num_token_slots(self, placement: Placement) -> int:
        return len(placement.blocks) * self.block_size

    def cached_tokens(self, namespace: str, tokens: Sequence[int]) -> int:
        """Tokens of a sequence that need not be computed. At least one always is: it yields the logits."""
        return len(self._match(namespace, tokens)) * self.block_size

    def can_place(
        self, namespace: str, tokens: Sequence[int], reserve_blocks: int = 0, *, reuse: bool = True
    ) -> bool:
        """Would `place` leave at least `reserve_blocks` free? Changes nothing."""
        hits = self._match(namespace, tokens) if reuse else []
        revived = sum(self.pool.is_free(entry.blocks[0]) for entry in hits)
        fresh = blocks_for(len(tokens), self.block_size) - len(hits)
        return fresh + revived + reserve_blocks <= self.pool.num_free

    def place(self, namespace: str, tokens: Sequence[int], *, reuse: bool = True) -> Placement:
        """Blocks for all `tokens`, leading ones shared with the cache where it has them.

        Ask `can_place` first. Without `reuse` every token will be computed (prompt log-probabilities).
        """
        hits = self._match(namespace, tokens) if reuse else []
        shared = [entry.blocks[0] for entry in hits]
        self.num_cached_free -= sum(map(self.pool.is_free, shared))
        self.pool.share(shared)
        blocks = shared + self._allocate(blocks_for(len(tokens), self.block_size) - len(hits))
        return Placement(namespace, blocks, len(hits) * self.block_size, hits)

    def grow(self, placement: Placement) -> int:
        """One more block at the end, returned. Ask `pool.num_free` first."""
        (block,) = self._allocate(1)
        placement.blocks.append(block)
        return block

    def commit(self, placement: Placement, tokens: Sequence[int], num_computed: int) -> None:
        """KV of the first `num_computed` tokens is written and settled: index every full block of it."""
        indexed = placement.indexed
        for idx in range(len(indexed), num_computed // self.block_size):
            content = tokens[idx * self.block_size : (idx + 1) * self.block_size]
            parent = indexed[-1] if indexed else None
            indexed.append(self.index.insert(placement.namespace, parent, content, placement.blocks[idx]))

    def release(self, placement: Placement) -> None:
        """Give all blocks back, tail first; those the index knows stay findable until reused."""
        unknown = [block for block in placement.blocks if not self.index.knows(block)]
        self.pool.release(placement.blocks[::-1], reuse_first=unknown)
        freed = sum(map(self.pool.is_free, placement.blocks))
        self.num_cached_free += freed - sum(map(self.pool.is_free, unknown))
        placement.blocks = []
        placement.indexed = []

    def check_integrity(self, placements: Iterable[Placement]) -> None:
        """Recompute pool counts and index from the placements; AssertionError on a mismatch."""
        placements = list(placements)
        self.pool.check_integrity(placement.blocks for placement in placements)
        self.index.check_integrity()
        for placement in placements:
            for block, entry in zip(placement.blocks, placement.indexed, strict=False):
                assert block in entry.blocks, f"block {block} is not in its entry {entry.blocks}"
        cached = sum(map(self.index.knows, self.pool.free_order()))
        assert self.num_cached_free == cached, f"{self.num_cached_free} cached free blocks, {cached} found"
        self._check_eviction_order()

    def _match(self, namespace: str, tokens: Sequence[int]) -> list[PrefixEntry]:
        return self.index.match(namespace, tokens, len(tokens) - 1)

    def _allocate(self, count: int) -> list[int]:
        blocks = self.pool.allocate(count)
        self.num_cached_free -= sum(map(self.index.knows, blocks))
        for block in blocks:
            self.index.forget(block)
        return blocks

    def _check_eviction_order(self) -> None:
        """Among free blocks a child entry's blocks come before the last block of its parent."""
        position = {block: idx for idx, block in enumerate(self.pool.free_order())}
        for entry in {id(e): e for e in map(self.index.entry_of, position) if e is not None}.values():
            parent = entry.parent
            if parent is None or not all(block in position for block in parent.blocks):
                continue
            last_parent = max(position[block] for block in parent.blocks)
            assert all(position.get(block, last_parent) < last_parent for block in entry.blocks), (
                f"child blocks {entry.blocks} would outlive their parent's {parent.blocks}"
            )
