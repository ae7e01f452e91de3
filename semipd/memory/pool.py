"""Ref-counted KV blocks with a free list in LRU order."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from semipd.core.plan import PADDING_BLOCK


class BlockPool:
    """Owns the ids 1 .. num_blocks - 1; block 0 is the padding target and never handed out.

    A block is either referenced (count > 0) or on the free list. Free blocks keep their content, and
    so may still be found by the prefix index, until `allocate` hands them out again: oldest first.

        allocate ──▶ count 1 ──share──▶ 2, 3, ... ──release──▶ 0 ──▶ free list ──allocate──▶ content lost
                                                                 └───share──▶ count 1 (reused)

    The free list is an OrderedDict because `share` takes blocks out of its middle.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, f"a pool of {num_blocks} blocks has no block to give"
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_usable(self) -> int:
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks `allocate` can hand out, reusable cached ones included."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        return self._counts[block] == 0

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked `num_free` and must drop what an index knew of them."""
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        counts, pop_first = self._counts, self._free.popitem
        blocks = [pop_first(last=False)[0] for _ in range(count)]
        for block in blocks:
            counts[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference each; free ones come off the free list with their content."""
        for block in blocks:
            if self._counts[block] == 0:
                del self._free[block]
            self._counts[block] += 1

    def release(self, blocks: Sequence[int], *, reuse_first: Iterable[int] = ()) -> None:
        """Drop one reference each, in the given order; those without owner queue at the LRU end.

        `reuse_first` names blocks whose content nobody can find again: they are handed out before any
        other free block.
        """
        counts, free = self._counts, self._free
        for block in blocks:
            assert counts[block] > 0, f"block {block} released more often than taken"
            counts[block] -= 1
            if counts[block] == 0:
                free[block] = None
        for block in reuse_first:
            if counts[block] == 0:
                free.move_to_end(block, last=False)

    def free_order(self) -> list[int]:
        """Free blocks, next to be handed out first."""
        return list(self._free)

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Recompute every count from the owners' block tables; AssertionError on a mismatch."""
        counts = [0] * self.num_blocks
        for table in owners:
            for block in table:
                counts[block] += 1
        assert counts[PADDING_BLOCK] == 0, f"padding block owned {counts[PADDING_BLOCK]} times"
        wrong = {
            b: (have, want)
            for b, (have, want) in enumerate(zip(self._counts, counts, strict=True))
            if have != want
        }
        assert not wrong, f"reference counts (have, want): {wrong}"
        free = {b for b in range(1, self.num_blocks) if counts[b] == 0}
        assert free == set(self._free), f"free list differs: {free ^ set(self._free)}"
