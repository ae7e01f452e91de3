"""The sequences a lane knows, and what plans change about them: the host's part, for every device."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from semipd.core.plan import Join, Segment, StepPlan, blocks_for
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams


@dataclass(slots=True, eq=False)
class Resident:
    """A Join that the lane keeps up to date; one that left and came back is another.

    Attributes:
        token_ids: what the host knows: the lane's own samples are appended.
        block_size: tokens per block of its table.
        num_tokens: with those that steps in flight sample.
        slot: where the device keeps what it needs of the sequence, if it does.
    """

    seq: SeqId
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    block_table: list[int]
    block_size: int
    num_tokens: int
    slot: int = 0

    @classmethod
    def of(cls, join: Join, block_size: int) -> "Resident":
        tokens, blocks = list(join.token_ids), list(join.block_table)
        return cls(join.seq, tokens, join.num_prompt_tokens, join.params, blocks, block_size, len(tokens))

    def blocks_of(self, num_tokens: int) -> list[int]:
        """Blocks that hold its first tokens."""
        return self.block_table[: blocks_for(num_tokens, self.block_size)]

    def check_blocks(self, num_tokens: int) -> None:
        room = len(self.block_table) * self.block_size
        assert num_tokens <= room, (
            f"sequence {self.seq}: {num_tokens} tokens, {room} slots in its block table"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A segment with its resident."""

    segment: Segment
    resident: Resident

    @property
    def end(self) -> int:
        return self.segment.start + self.segment.length

    @property
    def context_blocks(self) -> list[int]:
        """Blocks that hold what it attends to."""
        return self.resident.blocks_of(self.end)

    def predicted_prompt(self) -> range:
        """Indices of the prompt tokens whose log-probabilities this chunk owes."""
        if self.segment.prompt_logprobs is None:
            return range(0)
        return range(self.segment.start + 1, min(self.end, self.resident.num_prompt_tokens - 1) + 1)

    def check(self) -> None:
        resident, segment = self.resident, self.segment
        known = len(resident.token_ids)
        assert segment.start < self.end <= known, f"{segment} does not fit {known} tokens"
        assert not segment.sample or self.end == resident.num_tokens, (
            f"{segment} samples before the newest of {resident.num_tokens} tokens"
        )
        resident.check_blocks(self.end)


class Residents:
    """A device that keeps state of its own about them overrides what follows a change."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._by_seq: dict[SeqId, Resident] = {}

    def apply(self, plan: StepPlan) -> None:
        """Leaves, joins, new blocks, in this order."""
        for seq in plan.leaves:
            assert seq in self._by_seq, f"step {plan.step_id}: sequence {seq} leaves but is not resident"
            self.left(self._by_seq.pop(seq))
        for join in plan.joins:
            assert join.seq not in self._by_seq, f"step {plan.step_id}: sequence {join.seq} joins twice"
            self._join(join)
        for seq, blocks in plan.new_blocks:
            resident = self._by_seq[seq]
            start = len(resident.block_table)
            resident.block_table.extend(blocks)
            self.grew(resident, start)

    def rebuild(self, joins: Iterable[Join]) -> None:
        self._by_seq.clear()
        self.emptied()
        for join in joins:
            self._join(join)

    def find(self, seqs: Sequence[SeqId]) -> list[Resident]:
        return [self._by_seq[seq] for seq in seqs]

    def chunks(self, plan: StepPlan) -> list[Chunk]:
        """Of the plan's segments. That the plan fits what is known here is checked."""
        for resident in self.find(plan.decode):
            resident.check_blocks(resident.num_tokens)
        chunks = [Chunk(segment, self._by_seq[segment.seq]) for segment in plan.segments]
        for chunk in chunks:
            seq = chunk.segment.seq
            assert seq not in plan.decode, f"step {plan.step_id}: sequence {seq} prefills and decodes"
            chunk.check()
        return chunks

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._by_seq.values())

    def __len__(self) -> int:
        return len(self._by_seq)

    def joined(self, resident: Resident) -> None:
        """It has come in; it may be changed still."""

    def grew(self, resident: Resident, start: int) -> None:
        """Its block table has new entries from `start` on."""

    def left(self, resident: Resident) -> None:
        """It is not here any more."""

    def emptied(self) -> None:
        """Nobody is here any more."""

    def _join(self, join: Join) -> None:
        resident = Resident.of(join, self._block_size)
        self._by_seq[join.seq] = resident
        self.joined(resident)
