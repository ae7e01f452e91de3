"""Block pool and prefix index against a brute-force oracle, by random operation sequences (Hypothesis)."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from semipd.core.plan import blocks_for
from semipd.devices.fake import BLOCK_SIZE
from semipd.memory.kv import KVMemory, Placement
from semipd.memory.pool import BlockPool

NUM_BLOCKS = 14


class Oracle:
    """Remembers what each block's slots hold and who owns them. Slow and obvious."""

    def __init__(self) -> None:
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}  # block -> (namespace, whole prefix)
        self.free = list(range(1, NUM_BLOCKS))  # LRU first
        self.owners: dict[int, int] = dict.fromkeys(range(1, NUM_BLOCKS), 0)

    def longest_hit(self, namespace: str, tokens: list[int]) -> int:
        known = set(self.content.values())
        num_tokens = 0
        while num_tokens + BLOCK_SIZE < len(tokens):
            if (namespace, tuple(tokens[: num_tokens + BLOCK_SIZE])) not in known:
                break
            num_tokens += BLOCK_SIZE
        return num_tokens


class KVMachine(RuleBasedStateMachine):
    """Two symbols a block and three namespaces, so that prefixes collide often."""

    live: Bundle[int] = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.memory = KVMemory(NUM_BLOCKS, BLOCK_SIZE)
        self.oracle = Oracle()
        self.sequences: dict[int, tuple[Placement, list[int], int]] = {}
        self.next_id = 0

    def _tokens(self, pattern: list[int], tail: int) -> list[int]:
        return [symbol for symbol in pattern for _ in range(BLOCK_SIZE)] + [9] * tail

    @rule(
        target=live,
        namespace=st.sampled_from(["", "a"]),
        pattern=st.lists(st.integers(0, 1), max_size=4),
        tail=st.integers(0, BLOCK_SIZE - 1),
        reserve=st.integers(0, 2),
        reuse=st.booleans(),
    )
    def place(
        self, namespace: str, pattern: list[int], tail: int, reserve: int, reuse: bool
    ) -> MultipleResults[int] | int:
        tokens = self._tokens(pattern, tail) or [9]
        hit = self.oracle.longest_hit(namespace, tokens) if reuse else 0
        if reuse:
            assert self.memory.cached_tokens(namespace, tokens) == hit
        free_before = self.memory.pool.num_free
        fits = self.memory.can_place(namespace, tokens, reserve, reuse=reuse)
        assert self.memory.pool.num_free == free_before
        fresh = blocks_for(len(tokens), BLOCK_SIZE) - hit // BLOCK_SIZE
        if not fits:
            # a refusal is only right if even the best choice of hit blocks leaves too little
            assert fresh + reserve > free_before - hit // BLOCK_SIZE
            return multiple()
        placement = self.memory.place(namespace, tokens, reuse=reuse)
        assert self.memory.pool.num_free >= reserve
        assert placement.num_cached_tokens == hit
        shared, new = placement.blocks[: hit // BLOCK_SIZE], placement.blocks[hit // BLOCK_SIZE :]
        for idx, block in enumerate(shared):
            assert self.oracle.content[block] == (namespace, tuple(tokens[: (idx + 1) * BLOCK_SIZE]))
        for block in new:
            assert self.oracle.owners[block] == 0, "a block in use was handed out"
            self.oracle.content.pop(block, None)
        self._own(placement.blocks)
        self.next_id += 1
        self.sequences[self.next_id] = (placement, tokens, hit)
        return self.next_id

    @rule(seq=live, count=st.integers(1, 2 * BLOCK_SIZE))
    def compute(self, seq: int, count: int) -> None:
        """Settle some tokens: full blocks become findable, not earlier."""
        if seq not in self.sequences:
            return
        placement, tokens, computed = self.sequences[seq]
        computed = min(computed + count, len(tokens))
        self.memory.commit(placement, tokens, computed)
        for idx in range(computed // BLOCK_SIZE):
            self.oracle.content[placement.blocks[idx]] = (
                placement.run.namespace,
                tuple(tokens[: (idx + 1) * BLOCK_SIZE]),
            )
        self.sequences[seq] = (placement, tokens, computed)

    @rule(seq=live)
    def grow(self, seq: int) -> None:
        if seq not in self.sequences or not self.memory.pool.num_free:
            return
        placement, tokens, computed = self.sequences[seq]
        block = self.memory.grow(placement)
        assert self.oracle.owners[block] == 0
        self.oracle.content.pop(block, None)
        self._own([block])
        tokens = tokens + [7] * (self.memory.num_token_slots(placement) - len(tokens))
        self.sequences[seq] = (placement, tokens, computed)

    @rule(seq=consumes(live))
    def release(self, seq: int) -> None:
        if seq not in self.sequences:
            return
        placement, _, _ = self.sequences.pop(seq)
        for block in placement.blocks:
            self.oracle.owners[block] -= 1
        self.memory.release(placement)

    def _own(self, blocks: list[int]) -> None:
        for block in blocks:
            self.oracle.owners[block] += 1

    @invariant()
    def totals_agree(self) -> None:
        self.memory.check_integrity([placement for placement, _, _ in self.sequences.values()])
        free = {block for block, owners in self.oracle.owners.items() if owners == 0}
        assert set(self.memory.pool.free_order()) == free
        assert self.memory.num_cached_free == len(free & set(self.oracle.content))


KVMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestKVMachine = KVMachine.TestCase


def test_freed_blocks_are_reused_in_lru_order_and_unknown_ones_first() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(3), pool.allocate(2)
    pool.release(first[::-1])
    pool.release(second[::-1], reuse_first=[second[1]])
    assert pool.free_order() == [second[1], 6, 7, *first[::-1], second[0]]


def test_integrity_check_notices_a_leak() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.check_integrity([blocks])
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([blocks[:1]])
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)


def test_integrity_check_notices_a_forged_run() -> None:
    memory, placement = _memory_with_a_prefix()
    placement.run.tokens[0] = 2
    with pytest.raises(AssertionError, match="foreign key"):
        memory.check_integrity([placement])


def test_integrity_check_notices_a_forged_entry() -> None:
    memory, placement = _memory_with_a_prefix()
    assert memory.cached_tokens("", [1] * 40) == 2 * BLOCK_SIZE
    memory.check_integrity([placement])
    assert placement.run.parent is not None
    placement.run.parent.num_children = 5
    with pytest.raises(AssertionError, match="children"):
        memory.check_integrity([placement])


def test_a_prefix_nobody_asks_for_makes_no_entry() -> None:
    """What makes a long prompt cheap: one look-up, whatever its length."""
    memory, placement = _memory_with_a_prefix()
    assert len(placement.run.blocks) == 2
    memory.release(placement)
    assert memory.cached_tokens("", [1] * BLOCK_SIZE + [2] * BLOCK_SIZE) == BLOCK_SIZE
    assert len(placement.run.blocks) == 1, "only the block that was asked for leaves the run"


def _memory_with_a_prefix() -> tuple[KVMemory, Placement]:
    memory = KVMemory(6, BLOCK_SIZE)
    placement = memory.place("", [1] * 40)
    memory.commit(placement, [1] * 40, 2 * BLOCK_SIZE)
    memory.check_integrity([placement])
    return memory, placement
