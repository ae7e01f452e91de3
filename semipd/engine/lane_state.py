"""What the coordinator knows about one lane: who is resident and which steps are in flight."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.request import SeqId
from semipd.core.split import Split
from semipd.devices.contract import Lane, WorkerLane, WorkerNews, WorkerReplacement
from semipd.engine.step_sizes import StepSizeHistogram
from semipd.partition.interface import StepRecord
from semipd.sched.flight import Chunk, Flight
from semipd.sched.scheduler import Growth
from semipd.sched.sequence import Sequence


@dataclass(slots=True, eq=False)
class LaneState:
    """`inflight` is oldest first. `_leaves` wait for the next plan. `max_decode_tokens`: see DeviceInfo.

    `executor`: up; missing: the lane has lost it; blank: it has another, which needs `restore`.
    """

    lane: Lane
    max_decode_tokens: int = 1
    executor: Literal["up", "missing", "blank"] = "up"
    inflight: deque[Flight] = field(default_factory=deque)
    residents: set[SeqId] = field(default_factory=set)
    num_steps: int = 0
    num_slow_steps: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    step_sizes: StepSizeHistogram = field(default_factory=StepSizeHistogram)
    busy_ns: int = 0
    last_settled_ns: int = 0
    _leaves: list[SeqId] = field(default_factory=list)
    _decodes: list[Sequence] | None = None  # of `_decode_batch`, unless one has left since
    _decode_batch: tuple[SeqId, ...] = ()
    _context_tokens: int = 0
    _worker_lane: WorkerLane | None = field(init=False)

    def __post_init__(self) -> None:
        self._worker_lane = self.lane if isinstance(self.lane, WorkerLane) else None

    @property
    def batch(self) -> tuple[int, int]:
        """Sequences of the last decode step, and the context tokens that it read."""
        return len(self._decode_batch), self._context_tokens

    @property
    def can_lose_executor(self) -> bool:
        return self._worker_lane is not None

    @property
    def has_room(self) -> bool:
        return self.executor == "up" and self.lane.capacity() > 0

    def units(self, split: Split) -> int:
        return split.units_of(self.lane.name)

    def leave(self, seq: SeqId) -> None:
        """The sequence is not resident from the next plan on. No effect if it never was."""
        if seq in self.residents:
            self.residents.remove(seq)
            self._leaves.append(seq)
            self._decodes = None

    def rebuild(self, sequences: Mapping[SeqId, Sequence]) -> None:
        """Send the lane everything it should know; only with no step in flight."""
        assert not self.inflight, f"{self.lane.name} lane rebuilt with steps in flight"
        self._leaves = []
        self.lane.rebuild([_join_of(sequences[seq]) for seq in self.residents])

    def worker_news(self) -> list[WorkerNews]:
        """What became of the executor since the last call; `executor` is then as the last of it says."""
        if self._worker_lane is None:
            return []
        news = self._worker_lane.worker_news()
        for item in news:
            self.executor = "blank" if isinstance(item, WorkerReplacement) else "missing"
        return news

    def move(self, split: Split) -> None:
        """Steps in flight of a missing executor will run under another split."""
        assert self.executor == "missing", f"{self.lane.name}: only a lost step can be moved"
        for idx, flight in enumerate(self.inflight):
            self.inflight[idx] = flight._replace(plan=flight.plan._replace(split=split))

    def restore(self, sequences: Mapping[SeqId, Sequence], now_ns: int) -> None:
        """Tell a blank executor everything it should know, then launch the steps in flight again.

        Their changes of membership are part of that knowledge, so their plans carry none. Whoever has left
        since still takes part in them, and leaves with the next plan.
        """
        assert self.executor == "blank", f"{self.lane.name}: its executor is {self.executor}"
        partakers = {s.seq: s for flight in self.inflight for s in flight.sequences}
        known = partakers | {seq: sequences[seq] for seq in self.residents}
        self._leaves = [seq for seq in partakers if seq not in self.residents]
        self.lane.rebuild([_join_of(sequence) for sequence in known.values()])
        self.executor = "up"
        for idx, flight in enumerate(self.inflight):
            plan = flight.plan._replace(joins=(), leaves=(), new_blocks=())
            self.inflight[idx] = flight._replace(plan=plan, launched_at_ns=now_ns)
            self.lane.launch(plan, now_ns)

    def launch(
        self,
        step_id: int,
        split: Split,
        decodes: list[Sequence],
        grown: list[Growth],
        chunks: list[Chunk],
        other_units: int,
        now_ns: int,
    ) -> None:
        """Turn the choice into a plan: joins for newcomers, new blocks for residents that grew."""
        residents = self.residents
        new_blocks = tuple([(s.request.seq, (block,)) for s, block in grown if s.request.seq in residents])
        joins = self._join_decodes(decodes)
        if chunks:
            joins += self._join([sequence for sequence, _ in chunks])
        segments = tuple([segment for _, segment in chunks])
        decode, leaves, self._leaves = self._decode_batch, tuple(self._leaves), []
        plan = StepPlan(step_id, split, decode, segments, tuple(joins), leaves, new_blocks)
        self.inflight.append(Flight(plan, decodes, chunks, self._context_tokens, other_units, now_ns))
        self.lane.launch(plan, now_ns)

    def settle(self, result: StepResult, now_ns: int) -> Flight:
        """Take the oldest step in flight off the list; it must be this one."""
        flight = self.inflight.popleft()
        assert flight.plan.step_id == result.step_id, (
            f"step {result.step_id} settled before {flight.plan.step_id}"
        )
        self.num_steps += 1
        num_decode_tokens = len(flight.decodes)
        if self.max_decode_tokens > 1:
            num_decode_tokens = sum(map(len, result.tokens[: len(flight.decodes)]))
        self.num_decode_tokens += num_decode_tokens
        num_new_tokens = flight.new_tokens
        self.num_prefill_tokens += num_new_tokens
        self.step_sizes.add(num_decode_tokens + num_new_tokens)
        self.busy_ns += result.busy_ns
        self.last_settled_ns = now_ns
        return flight

    def record(self, flight: Flight, result: StepResult) -> StepRecord:
        """What partition control learns from a settled step."""
        return StepRecord(
            self.lane.name,
            self.units(flight.plan.split),
            flight.other_units,
            len(flight.decodes),
            flight.context_tokens,
            flight.new_tokens,
            flight.attended_tokens,
            result.busy_ns,
        )

    def _join_decodes(self, decodes: list[Sequence]) -> list[Join]:
        """Newcomers of the batch, which is noted. The tuple stays the same object while the batch is
        unchanged: lanes test by identity. Each of its sequences then reads one more token than in the step
        before, where a step gives it one."""
        is_new = decodes != self._decodes
        if is_new:
            self._decodes = decodes
            self._decode_batch = tuple([sequence.request.seq for sequence in decodes])
        if is_new or self.max_decode_tokens > 1:
            self._context_tokens = sum([sequence.num_scheduled for sequence in decodes])
        else:
            self._context_tokens += len(decodes)
        return self._join(decodes) if is_new else []

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
