"""What the coordinator knows about one lane: who is resident and which steps are in flight."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.request import SeqId
from semipd.core.split import Split
from semipd.devices.contract import Lane
from semipd.sched.scheduler import Chunk, Growth
from semipd.sched.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched step and the sequences it works on, in the plan's order."""

    plan: StepPlan
    decodes: list[Sequence]
    chunks: list[Chunk]

    @property
    def sampled(self) -> list[Sequence]:
        """The sequence behind each token of the step's result."""
        if not self.chunks:
            return self.decodes
        return self.decodes + [sequence for sequence, segment in self.chunks if segment.sample]


@dataclass(slots=True, eq=False)
class LaneState:
    """`inflight` is oldest first. `_leaves` wait for the next plan."""

    lane: Lane
    inflight: deque[Flight] = field(default_factory=deque)
    residents: set[SeqId] = field(default_factory=set)
    num_steps: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    busy_ns: int = 0
    last_settled_ns: int = 0
    _leaves: list[SeqId] = field(default_factory=list)
    _decode_batch: tuple[SeqId, ...] = ()

    def units(self, split: Split) -> int:
        return split.prefill_units if self.lane.name == "prefill" else split.decode_units

    def leave(self, seq: SeqId) -> None:
        """The sequence is not resident from the next plan on. No effect if it never was."""
        if seq in self.residents:
            self.residents.remove(seq)
            self._leaves.append(seq)

    def rebuild(self, sequences: Mapping[SeqId, Sequence]) -> None:
        """Send the lane everything it should know; only with no step in flight."""
        assert not self.inflight, f"{self.lane.name} lane rebuilt with steps in flight"
        self._leaves = []
        self.lane.rebuild([_join_of(sequences[seq]) for seq in self.residents])

    def launch(
        self,
        step_id: int,
        split: Split,
        decodes: list[Sequence],
        grown: list[Growth],
        chunks: list[Chunk],
        now_ns: int,
    ) -> None:
        """Turn the choice into a plan: joins for newcomers, new blocks for residents that grew."""
        self._decode_batch = self._same_or_new_batch(decodes)
        new_blocks = tuple((s.seq, (block,)) for s, block in grown if s.seq in self.residents)
        joins = self._join(decodes) + self._join([sequence for sequence, _ in chunks])
        plan = StepPlan(
            step_id=step_id,
            split=split,
            decode=self._decode_batch,
            segments=tuple(segment for _, segment in chunks),
            joins=tuple(joins),
            leaves=tuple(self._leaves),
            new_blocks=new_blocks,
        )
        self._leaves = []
        self.inflight.append(Flight(plan, decodes, chunks))
        self.lane.launch(plan, now_ns)

    def settle(self, result: StepResult, now_ns: int) -> Flight:
        """Take the oldest step in flight off the list; it must be this one."""
        flight = self.inflight.popleft()
        assert flight.plan.step_id == result.step_id, (
            f"step {result.step_id} settled before {flight.plan.step_id}"
        )
        self.num_steps += 1
        self.num_decode_tokens += len(flight.decodes)
        self.num_prefill_tokens += sum(segment.length for _, segment in flight.chunks)
        self.busy_ns += result.busy_ns
        self.last_settled_ns = now_ns
        return flight

    def _same_or_new_batch(self, decodes: list[Sequence]) -> tuple[SeqId, ...]:
        """The same tuple object while the batch is unchanged: lanes test by identity."""
        batch = tuple([sequence.request.seq for sequence in decodes])
        return self._decode_batch if batch == self._decode_batch else batch

    def _join(self, sequences: list[Sequence]) -> list[Join]:
        newcomers = [s for s in sequences if s.request.seq not in self.residents]
        for sequence in newcomers:
            self.residents.add(sequence.seq)
        return [_join_of(sequence) for sequence in newcomers]


def _join_of(sequence: Sequence) -> Join:
    assert sequence.placement is not None, f"seq {sequence.seq} joins without blocks"
    return Join(
        seq=sequence.seq,
        token_ids=list(sequence.tokens),
        num_prompt_tokens=len(sequence.request.prompt),
        params=sequence.request.params,
        block_table=list(sequence.placement.blocks),
    )
