"""The KV cache's book-keeping: placing sequences on blocks, growing them, indexing what they computed."""

from collections.abc import Iterable
from dataclasses import dataclass

from semipd.core.plan import blocks_for
from semipd.memory.pool import BlockPool
from semipd.memory.prefix import PrefixEntry, PrefixIndex, PrefixRun


@dataclass(slots=True)
class Placement:
    """The blocks of one sequence. The first `num_indexed` of them can be found; `run` ends them."""

    blocks: list[int]
    num_cached_tokens: int
    num_indexed: int
    run: PrefixRun


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

    def cached_tokens(self, namespace: str, tokens: list[int]) -> int:
        """Tokens of a sequence that need not be computed. At least one always is: it yields the logits."""
        return len(self._match(namespace, tokens)) * self.block_size

    def can_place(
        self, namespace: str, tokens: list[int], reserve_blocks: int = 0, *, reuse: bool = True
    ) -> bool:
        """Would `place` leave at least `reserve_blocks` free? Changes nothing."""
        hits = self._match(namespace, tokens) if reuse else []
        revived = sum(self.pool.is_free(entry.blocks[0]) for entry in hits)
        fresh = blocks_for(len(tokens), self.block_size) - len(hits)
        return fresh + revived + reserve_blocks <= self.pool.num_free

    def place(self, namespace: str, tokens: list[int], *, reuse: bool = True) -> Placement:
        """Blocks for all `tokens`, leading ones shared with the cache where it has them.

        Ask `can_place` first. Without `reuse` every token will be computed (prompt log-probabilities).
        """
        hits = self._match(namespace, tokens) if reuse else []
        shared = [entry.blocks[0] for entry in hits]
        self.num_cached_free -= sum(map(self.pool.is_free, shared))
        self.pool.share(shared)
        blocks = shared + self._allocate(blocks_for(len(tokens), self.block_size) - len(hits))
        run = PrefixRun(namespace, hits[-1] if hits else None)
        return Placement(blocks, len(hits) * self.block_size, len(hits), run)

    def grow(self, placement: Placement) -> int:
        """One more block at the end, returned. Ask `pool.num_free` first."""
        (block,) = self._allocate(1)
        placement.blocks.append(block)
        return block

    def commit(self, placement: Placement, tokens: list[int], num_computed: int) -> None:
        """KV of the first `num_computed` tokens is written and settled: index every full block of it."""
        start, end = placement.num_indexed, num_computed // self.block_size
        if end > start:
            content = tokens[start * self.block_size : end * self.block_size]
            self.index.extend(placement.run, content, placement.blocks[start:end])
            placement.num_indexed = end

    def release(self, placement: Placement) -> None:
        """Give all blocks back, tail first; those the index knows stay findable until reused."""
        unknown = placement.blocks[placement.num_indexed :]
        num_free = self.pool.num_free
        self.pool.release(placement.blocks[::-1], reuse_first=unknown)
        self.num_cached_free += self.pool.num_free - num_free - len(unknown)
        placement.blocks = []
        placement.num_indexed = 0

    def check_integrity(self, placements: Iterable[Placement]) -> None:
        """Recompute pool counts and index from the placements; AssertionError on a mismatch."""
        placements = list(placements)
        self.pool.check_integrity(placement.blocks for placement in placements)
        self.index.check_integrity()
        for placement in placements:
            self._check_indexed(placement)
        cached = sum(map(self.index.knows, self.pool.free_order()))
        assert self.num_cached_free == cached, f"{self.num_cached_free} cached free blocks, {cached} found"
        self._check_eviction_order()

    def _match(self, namespace: str, tokens: list[int]) -> list[PrefixEntry]:
        return self.index.match(namespace, tokens, len(tokens) - 1)

    def _allocate(self, count: int) -> list[int]:
        blocks = self.pool.allocate(count)
        self.num_cached_free -= self.index.forget(blocks)
        return blocks

    def _check_indexed(self, placement: Placement) -> None:
        """Its leading blocks are known, each behind the one before it, and no other is."""
        before: int | None = None
        for idx, block in enumerate(placement.blocks):
            assert self.index.knows(block) == (idx < placement.num_indexed), (
                f"block {block}, {idx} of {placement.num_indexed} indexed ones"
            )
            if idx < placement.num_indexed:
                blocks = self.index.blocks_before(block)
                assert (before in blocks) if idx else not blocks, f"block {block} stands behind {blocks}"
                before = block

    def _check_eviction_order(self) -> None:
        """Among free blocks those of a prefix come before the last block of the prefix it continues."""
        position = {block: idx for idx, block in enumerate(self.pool.free_order())}
        for block, idx in position.items():
            before = self.index.blocks_before(block) if self.index.knows(block) else []
            if before and all(other in position for other in before):
                last = max(position[other] for other in before)
                assert idx < last, f"block {block} would outlive {before}, which it continues"
