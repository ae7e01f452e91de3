"""Exact prefix reuse: full blocks of tokens, found by content, never by hash alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class PrefixEntry:
    """One known prefix: the parent's tokens plus these of one block.

    Several blocks may hold the same content (two requests computed it at the same time); the entry
    lives as long as one of them does. `num_children` counts entries and runs.
    """

    key: "EntryKey"
    parent: "PrefixEntry | None"
    blocks: list[int]
    num_children: int = 0


@dataclass(slots=True, eq=False)
class PrefixRun:
    """The end of one table's prefix, of which nobody else has computed or looked up a block: a row of entries
    that are not made yet, as most never are needed. `tokens` are those of `blocks`.

    Without blocks it stands nowhere in the index, and `parent` is where the next block will hang.
    """

    namespace: str
    parent: PrefixEntry | None
    blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def key(self, tokens: list[int]) -> "EntryKey":
        """Of the block with these tokens behind `parent`."""
        return (self.namespace if self.parent is None else self.parent, tuple(tokens))


EntryKey = tuple[PrefixEntry | str, tuple[int, ...]]
"""(parent entry, or the namespace at the root; the block's token ids): nothing to collide."""


class PrefixIndex:
    """Maps token prefixes to blocks. It holds no references; the pool's counts decide who lives.

    A radix tree whose nodes are made on demand: `_known` has the entries, and each run under the key of its
    first block. Whoever meets a run takes apart as much of it as he needs.

    Who holds a block of an entry also holds a block of each ancestor, and tables are released tail
    first. So among free blocks a child's always stand before the last of its parent's, and eviction
    meets leaves first: `forget` never leaves an unreachable entry behind.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._known: dict[EntryKey, PrefixEntry | PrefixRun] = {}
        self._by_block: dict[int, PrefixEntry | PrefixRun] = {}

    @property
    def num_blocks(self) -> int:
        return len(self._by_block)

    def match(self, namespace: str, tokens: list[int], max_tokens: int) -> list[PrefixEntry]:
        """Entries covering the longest known prefix of at most `max_tokens` tokens, root first.

        Valid until the next change of the index.
        """
        return self._follow(namespace, tokens, max_tokens)

    def extend(self, run: PrefixRun, tokens: list[int], blocks: list[int]) -> None:
        """Register computed full blocks of a table behind those of its run. A block of known content joins
        that content's entry, behind which the run goes on."""
        size = self.block_size
        assert len(tokens) == len(blocks) * size, f"{len(tokens)} tokens are not {len(blocks)} full blocks"
        is_new = not run.blocks
        if is_new:
            num_joined = self._join_known(run, tokens, blocks)
            tokens, blocks = tokens[num_joined * size :], blocks[num_joined:]
        run.tokens += tokens
        run.blocks += blocks
        assert self._by_block.keys().isdisjoint(blocks), f"some of the blocks {blocks} are indexed already"
        self._by_block.update(dict.fromkeys(blocks, run))
        if is_new and blocks:
            self._hang(run)

    def knows(self, block: int) -> bool:
        return block in self._by_block

    def blocks_before(self, block: int) -> list[int]:
        """Those that hold the prefix which a known block continues; empty at the root."""
        node = self._by_block[block]
        if type(node) is PrefixRun and block != node.blocks[0]:
            return [node.blocks[node.blocks.index(block) - 1]]
        return [] if node.parent is None else node.parent.blocks

    def forget(self, blocks: Iterable[int]) -> int:
        """The blocks' content is about to be overwritten. Returns how many of them were indexed."""
        num_known = 0
        for block in blocks:
            node = self._by_block.pop(block, None)
            if node is None:
                continue
            num_known += 1
            if type(node) is PrefixRun:
                self._shorten(node, block)
            else:
                assert type(node) is PrefixEntry
                self._forget_of_entry(node, block)
        return num_known

    def check_integrity(self) -> None:
        """Recompute children and block maps; AssertionError on a mismatch."""
        children: dict[int, int] = {}
        by_block: dict[int, PrefixEntry | PrefixRun] = {}
        for key, node in self._known.items():
            own = node.key(node.tokens[: self.block_size]) if type(node) is PrefixRun else node.key
            assert own == key, "an entry stands under a foreign key"
            assert node.blocks, "an entry without a block"
            if type(node) is PrefixRun:
                assert len(node.tokens) == len(node.blocks) * self.block_size, "a run of partial blocks"
            by_block |= dict.fromkeys(node.blocks, node)
            if node.parent is not None:
                assert self._known.get(node.parent.key) is node.parent, "an entry's parent is gone"
                children[id(node.parent)] = children.get(id(node.parent), 0) + 1
        assert by_block == self._by_block, "block map differs from entries"
        for node in self._known.values():
            want = children.get(id(node), 0)
            have = node.num_children if type(node) is PrefixEntry else 0
            assert have == want, f"{have} children counted, {want} found"

    def _follow(self, parent: PrefixEntry | str, tokens: list[int], max_tokens: int) -> list[PrefixEntry]:
        """Entries behind `parent` with these tokens, as far as they are known."""
        found: list[PrefixEntry] = []
        start, size = 0, self.block_size
        while start + size <= max_tokens:
            node = self._known.get((parent, tuple(tokens[start : start + size])))
            if node is None:
                break
            if type(node) is PrefixRun:
                node = self._unfold(node, tokens[start:max_tokens], found)
            else:
                assert type(node) is PrefixEntry
                found.append(node)
            parent, start = node, len(found) * size
        return found

    def _unfold(self, run: PrefixRun, tokens: list[int], found: list[PrefixEntry]) -> PrefixEntry:
        """Make the entries of a run's first blocks, as many as have these tokens; the run goes on behind
        them. Appends them to `found` and returns the last."""
        size, num_made = self.block_size, self._num_common(run, tokens)
        for idx, block in enumerate(run.blocks[:num_made]):
            entry = PrefixEntry(run.key(run.tokens[idx * size : (idx + 1) * size]), run.parent, [block], 1)
            self._known[entry.key] = self._by_block[block] = entry
            found.append(entry)
            run.parent = entry
        del run.blocks[:num_made], run.tokens[: num_made * size]
        entry.num_children = 0
        if run.blocks:
            self._hang(run)
        return entry

    def _num_common(self, run: PrefixRun, tokens: list[int]) -> int:
        """Blocks that a run has in common with `tokens`: the first, and those behind it."""
        size = self.block_size
        most = min(len(run.blocks), len(tokens) // size)
        for end in range(2 * size, most * size + 1, size):
            if run.tokens[end - size : end] != tokens[end - size : end]:
                return end // size - 1
        return most

    def _join_known(self, run: PrefixRun, tokens: list[int], blocks: list[int]) -> int:
        """Add the first blocks to the entries that have their content. Returns how many have joined."""
        found = self._follow(run.namespace if run.parent is None else run.parent, tokens, len(tokens))
        for entry, block in zip(found, blocks, strict=False):
            assert block not in self._by_block, f"block {block} is indexed already"
            entry.blocks.append(block)
            self._by_block[block] = run.parent = entry
        return len(found)

    def _hang(self, run: PrefixRun) -> None:
        """Enter a run under the content of its first block, which is not known yet."""
        self._known[run.key(run.tokens[: self.block_size])] = run
        if run.parent is not None:
            run.parent.num_children += 1

    def _shorten(self, run: PrefixRun, block: int) -> None:
        last = run.blocks.pop()
        assert block == last, f"block {block} evicted before block {last} behind it"
        if not run.blocks:
            self._drop(run.key(run.tokens), run.parent)
        del run.tokens[-self.block_size :]

    def _forget_of_entry(self, entry: PrefixEntry, block: int) -> None:
        entry.blocks.remove(block)
        if not entry.blocks:
            assert entry.num_children == 0, f"block {block} evicted before {entry.num_children} children"
            self._drop(entry.key, entry.parent)

    def _drop(self, key: EntryKey, parent: PrefixEntry | None) -> None:
        del self._known[key]
        if parent is not None:
            parent.num_children -= 1
