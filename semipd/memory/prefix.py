"""Exact prefix reuse: full blocks of tokens, found by content, never by hash alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class PrefixEntry:
    """One known prefix: the parent's tokens plus these of one block.

    Several blocks may hold the same content (two requests computed it at the same time); the entry
    lives as long as one of them does.
    """

    key: "EntryKey"
    parent: "PrefixEntry | None"
    blocks: list[int] = field(default_factory=list)
    num_children: int = 0


EntryKey = tuple["PrefixEntry | str", tuple[int, ...]]
"""(parent entry, or the namespace at the root; the block's token ids): nothing to collide."""


class PrefixIndex:
    """Maps token prefixes to blocks. It holds no references; the pool's counts decide who lives.

    Who holds a block of an entry also holds a block of each ancestor, and tables are released tail
    first. So among free blocks a child's always stand before the last of its parent's, and eviction
    meets leaves first: `forget` never leaves an unreachable entry behind.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._entries: dict[EntryKey, PrefixEntry] = {}
        self._by_block: dict[int, PrefixEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_blocks(self) -> int:
        return len(self._by_block)

    def match(self, namespace: str, tokens: Sequence[int], max_tokens: int) -> list[PrefixEntry]:
        """Entries covering the longest known prefix of at most `max_tokens` tokens, root first.

        Valid until the next change of the index.
        """
        found: list[PrefixEntry] = []
        parent: PrefixEntry | str = namespace
        size = self.block_size
        for start in range(0, max_tokens - size + 1, size):
            entry = self._entries.get((parent, tuple(tokens[start : start + size])))
            if entry is None:
                break
            found.append(entry)
            parent = entry
        return found

    def insert(
        self, namespace: str, parent: PrefixEntry | None, tokens: Sequence[int], block: int
    ) -> PrefixEntry:
        """Register a computed full block under its parent (None: first block). Returns its entry."""
        assert len(tokens) == self.block_size, f"{len(tokens)} tokens are not a full block"
        assert block not in self._by_block, f"block {block} is indexed already"
        key: EntryKey = (namespace if parent is None else parent, tuple(tokens))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = PrefixEntry(key, parent)
            if parent is not None:
                parent.num_children += 1
        entry.blocks.append(block)
        self._by_block[block] = entry
        return entry

    def knows(self, block: int) -> bool:
        return block in self._by_block

    def entry_of(self, block: int) -> PrefixEntry | None:
        return self._by_block.get(block)

    def forget(self, block: int) -> None:
        """The block's content is about to be overwritten. No effect on a block that is not indexed."""
        entry = self._by_block.pop(block, None)
        if entry is None:
            return
        entry.blocks.remove(block)
        if not entry.blocks:
            assert entry.num_children == 0, f"block {block} evicted before {entry.num_children} children"
            del self._entries[entry.key]
            if entry.parent is not None:
                entry.parent.num_children -= 1

    def check_integrity(self) -> None:
        """Recompute children and block maps; AssertionError on a mismatch."""
        children: dict[int, int] = {}
        by_block: dict[int, PrefixEntry] = {}
        for key, entry in self._entries.items():
            assert entry.key == key, "an entry stands under a foreign key"
            assert entry.blocks, "an entry without a block"
            by_block |= dict.fromkeys(entry.blocks, entry)
            if entry.parent is not None:
                assert self._entries.get(entry.parent.key) is entry.parent, "an entry's parent is gone"
                children[id(entry.parent)] = children.get(id(entry.parent), 0) + 1
        assert by_block == self._by_block, "block map differs from entries"
        for entry in self._entries.values():
            want = children.get(id(entry), 0)
            assert entry.num_children == want, f"{entry.num_children} children counted, {want} found"
