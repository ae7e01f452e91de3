"""The sequences a lane knows, each in a slot; what plans change about them, as deltas for the device."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from semipd.core.plan import BLOCK_SIZE, Join, Segment, StepPlan
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.rows.slots import PADDING_SLOT, Delta, SlotState
from semipd.sampling.stages import needs_history


@dataclass(slots=True, eq=False)
class SlotResident:
    """`token_ids`: what the host knows; steps in flight may have sampled more, which `num_tokens` counts."""

    seq: SeqId
    slot: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    block_table: list[int]
    num_tokens: int

    @classmethod
    def of(cls, join: Join, slot: int) -> "SlotResident":
        tokens = list(join.token_ids)
        blocks = list(join.block_table)
        return cls(join.seq, slot, tokens, join.num_prompt_tokens, join.params, blocks, len(tokens))

    def check_blocks(self, num_tokens: int) -> None:
        room = len(self.block_table) * BLOCK_SIZE
        assert num_tokens <= room, (
            f"sequence {self.seq}: {num_tokens} tokens, {room} slots in its block table"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A segment with its resident."""

    segment: Segment
    resident: SlotResident

    @property
    def end(self) -> int:
        return self.segment.start + self.segment.length

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


@dataclass(slots=True)
class Changes:
    """What the device has to be told before the next step. `histories`: sequences whose penalties count
    tokens, or that may choose some tokens only."""

    delta: Delta = field(default_factory=dict)
    histories: list[SlotResident] = field(default_factory=list)


class Residents:
    """Slots are handed out lowest first; slot 0 is padding."""

    def __init__(self, state: SlotState) -> None:
        self._state = state
        self._by_seq: dict[SeqId, SlotResident] = {}
        self._free: list[int] = []
        self._restricted: set[int] = set()
        self._changes = Changes()
        self._forget_all()

    def apply(self, plan: StepPlan) -> None:
        """Leaves, joins, new blocks, in this order."""
        for seq in plan.leaves:
            assert seq in self._by_seq, f"step {plan.step_id}: sequence {seq} leaves but is not resident"
            self._free.append(self._by_seq.pop(seq).slot)
        for join in plan.joins:
            assert join.seq not in self._by_seq, f"step {plan.step_id}: sequence {join.seq} joins twice"
            self._join(join)
        for seq, blocks in plan.new_blocks:
            resident = self._by_seq[seq]
            start = len(resident.block_table)
            self._state.add_blocks(self._changes.delta, resident.slot, start, blocks)
            resident.block_table.extend(blocks)

    def rebuild(self, joins: Iterable[Join]) -> None:
        self._forget_all()
        for join in joins:
            self._join(join)

    def take_changes(self) -> Changes:
        """Since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def find(self, seqs: Sequence[SeqId]) -> list[SlotResident]:
        return [self._by_seq[seq] for seq in seqs]

    def joins(self) -> list[Join]:
        """The state that `rebuild` would take, as far as the host knows it."""
        return [
            Join(r.seq, list(r.token_ids), r.num_prompt_tokens, r.params, list(r.block_table))
            for r in self._by_seq.values()
        ]

    def __len__(self) -> int:
        return len(self._by_seq)

    def _forget_all(self) -> None:
        self._by_seq.clear()
        self._changes = Changes()
        self._free = list(range(self._state.num_slots - 1, PADDING_SLOT, -1))

    def _join(self, join: Join) -> None:
        assert self._free, f"sequence {join.seq} joins, but all {len(self._by_seq)} slots are taken"
        resident = SlotResident.of(join, self._free.pop())
        self._by_seq[join.seq] = resident
        self._state.join(self._changes.delta, resident.slot, join)
        self._note_history(resident)

    def _note_history(self, resident: SlotResident) -> None:
        """The sampler reads the counts of every slot with edits: what the slot's last sequence was not
        allowed must be gone."""
        if needs_history(resident.params) or resident.slot in self._restricted:
            self._changes.histories.append(resident)
        self._restricted.discard(resident.slot)
        if resident.params.allowed_token_ids:
            self._restricted.add(resident.slot)
