"""The coordinator: one loop, five verbs.

    receive   new requests, cancels, status questions
    settle    finished steps: emit tokens, free blocks, move prefilled requests to the decode set
    decide    which split holds now
    launch    decode first, then the next prefill chunk, each only if its lane has room
    wait      the host's part

`tick` runs the first four and never blocks; time enters only as `now_ns`. No torch. So the same object
runs in the engine process, in tests against the fake device, and under a virtual clock.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from semipd.core.errors import SemipdError
from semipd.core.messages import (
    Cancel,
    GetPartition,
    GetStatus,
    Inbound,
    Outbound,
    SetClass,
    SetPartition,
    SetSlo,
    Status,
    Submit,
)
from semipd.core.plan import StepResult
from semipd.core.request import SeqId
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.slo import DEFAULT_CLASS, Targets
from semipd.core.split import Split
from semipd.devices.contract import Device, WorkerDeath
from semipd.engine.lane_events import partition_changed, slo_changed, split_changed, worker_changed
from semipd.engine.lane_state import LaneState
from semipd.engine.pace import busy_ns, prompt_pace
from semipd.engine.slow_steps import SlowSteps
from semipd.engine.status import engine_status
from semipd.engine.work import work_at_hand
from semipd.partition.control import Control
from semipd.partition.interface import Work
from semipd.partition.step_times.models import Models
from semipd.partition.table import SplitTable
from semipd.sched.flight import Chunk, Flight
from semipd.sched.limits import Limits
from semipd.sched.outbox import Outbox
from semipd.sched.scheduler import Growth, Scheduler
from semipd.sched.sequence import Sequence


class Turn(NamedTuple):
    """Result of one tick. `wake_at_ns`: tick again by then even if nothing arrives. `idle`: nothing lives."""

    outbox: list[Outbound]
    wake_at_ns: int | None
    idle: bool


class Coordinator:
    """Ties the scheduler's choices to the lanes of a device."""

    def __init__(self, device: Device, settings: EngineSettings, models: Models | None = None) -> None:
        """`models`: step times learned before, for a warm start. Raises SemipdError(`impossible_split`)."""
        info = device.info
        self.device = device
        self.settings = settings
        self.policy: SchedulerName = settings.scheduler
        if not info.splits and settings.scheduler == "semipd":
            self.policy = "chunked"  # the device cannot be divided; the engine process says so at start
        self.prefill = LaneState(device.prefill, info.max_decode_tokens)
        self.decode = LaneState(device.decode, info.max_decode_tokens)
        limits = Limits(
            info.max_model_len,
            settings.max_num_seqs,
            info.num_blocks,
            info.block_size,
            info.max_decode_tokens,
            int(settings.max_late_s * 1e9),
        )
        self.scheduler = Scheduler(limits, self._leave_lanes, settings.order)
        self.split = info.solo_decode
        table = SplitTable(info.splits, info.solo_prefill, info.solo_decode, info.num_units, info.unit)
        merge_tokens = min(settings.merge_tokens, info.max_step_tokens or settings.merge_tokens)
        in_force = replace(settings, scheduler=self.policy, merge_tokens=merge_tokens)
        self.control = Control(table, in_force, models or Models(info.num_units))
        self._can_lose_executors = self.prefill.can_lose_executor or self.decode.can_lose_executor
        self._slow_steps = SlowSteps()
        self._next_step_id = 1
        self._held: Split | None = None

    def tick(self, now_ns: int, inbox: Iterable[Inbound] = ()) -> Turn:
        """One turn of the loop. Never blocks. Raises LaneFailed when a lane cannot go on."""
        out = Outbox(now_ns)
        self._receive(inbox, out)
        self._settle(out)
        self._restore_lanes(out)
        self._expire(out)
        self._order(out)
        self._launch(out)
        return Turn(out.messages, self._wake_at_ns(now_ns), self.scheduler.idle)

    def _wake_at_ns(self, now_ns: int) -> int | None:
        device_ns, control_ns = self.device.wake_at_ns(), self.control.wake_at_ns
        if device_ns is not None and self.scheduler.queue.num_waiting:
            device_ns = min(device_ns, self.scheduler.planning.wake_at_ns(now_ns))
        if device_ns is None or control_ns is None:
            return control_ns if device_ns is None else device_ns
        return min(device_ns, control_ns)

    def _receive(self, inbox: Iterable[Inbound], out: Outbox) -> None:
        for message in inbox:
            match message:
                case Submit(request):
                    self.control.arrived(out.now_ns)
                    self.scheduler.submit(request, out)
                case Cancel(seq):
                    if seq in self.scheduler.sequences:
                        self.scheduler.finish(self.scheduler.sequences[seq], "cancelled", out)
                case GetStatus(nonce):
                    out.send(Status(nonce, engine_status(self, out.now_ns)))
                case GetPartition() | SetPartition() | SetSlo() | SetClass():
                    self._answer(message, out)

    def _answer(self, message: GetPartition | SetPartition | SetSlo | SetClass, out: Outbox) -> None:
        """The event of a change goes out before its answer, so that the daemon knows of it first."""
        try:
            match message:
                case GetPartition(nonce):
                    out.send(Status(nonce, self.control.full_status(out.now_ns)))
                case SetPartition(nonce):
                    change, answer = self.control.set(message, out.now_ns, self._work_getter(out))
                    if not message.dry_run:
                        out.event(partition_changed(change))
                    out.send(Status(nonce, answer))
                case SetSlo(nonce, targets, actor, reason):
                    before = self.control.slo.targets
                    levels = self.control.set_slo(message, out.now_ns)
                    self._retarget(DEFAULT_CLASS, before, self.control.slo.targets)
                    if targets:
                        out.event(slo_changed(actor, reason, DEFAULT_CLASS, levels["targets"]))
                    out.send(Status(nonce, levels))
                case SetClass(nonce, name, before, after, actor, reason):
                    num_changed = self._retarget(name, before, after)
                    out.event(slo_changed(actor, reason, name, after.to_wire()))
                    out.send(Status(nonce, {"requests": num_changed}))
        except SemipdError as error:
            out.send(Status(message.nonce, {}, error.details))

    def _retarget(self, service_class: str, before: Targets, after: Targets) -> int:
        return self.scheduler.retarget(service_class, before, after)

    def _settle(self, out: Outbox) -> None:
        for state in (self.decode, self.prefill):
            for result in state.lane.poll(out.now_ns):
                flight = state.settle(result, out.now_ns)
                if not result.mixed:
                    step = state.record(flight, result)
                    predicted_ms = self.control.record(step, out.now_ns)
                    self._slow_steps.judge(state, result.step_id, step, predicted_ms, out)
                self._settle_step(flight, result, out)

    def _settle_step(self, flight: Flight, result: StepResult, out: Outbox) -> None:
        settled = self.scheduler.settle(flight, result, out)
        for sequence in settled.started:
            if self.policy == "semipd":
                self.prefill.leave(sequence.seq)
        for sequence in settled.first:
            ttft_ms = (out.now_ns - sequence.request.arrival_ns) / 1e6
            self.control.first_token(sequence.seq, out.now_ns, ttft_ms)
        for sequence, _ in settled.ended:
            self.control.finished(out.now_ns, _tpot_ms(sequence, out.now_ns), sequence.num_output_tokens)

    def _restore_lanes(self, out: Outbox) -> None:
        """A lane that has lost its executor gets its steps back as soon as it has another and their units are
        free. Until then one split holds, so that the other lane goes on with its share."""
        if not self._can_lose_executors:
            return
        for state in (self.decode, self.prefill):
            for news in state.worker_news():
                out.event(worker_changed(state.lane.name, news))
                if isinstance(news, WorkerDeath) and self.policy == "semipd":
                    self._hold_split(state)
            if state.executor == "blank" and self._may_restore(state):
                state.restore(self.scheduler.sequences, out.now_ns)
        if self.decode.executor == self.prefill.executor == "up":
            self._held = None

    def _hold_split(self, state: LaneState) -> None:
        """Lost steps move to the split that is held, but for merged ones, which keep every unit: the prefill
        lane must not go on with a prompt whose last chunk is not computed."""
        self._held = self._held or self.control.divided
        if state is self.prefill or not any(flight.chunks for flight in state.inflight):
            state.move(self._held)

    def _may_restore(self, state: LaneState) -> bool:
        return self._units_held(state) + self._units_of_other(state) <= self.device.info.num_units

    def _expire(self, out: Outbox) -> None:
        change = self.control.expire(out.now_ns)
        if change is not None:
            out.event(partition_changed(change))

    def _work_getter(self, out: Outbox) -> Callable[[], Work]:
        return lambda: work_at_hand(self.scheduler, self.prefill, self.control.models, out.now_ns)

    def _order(self, out: Outbox) -> None:
        """Decide in which order prompts come next."""
        if self.scheduler.planning.is_due(out.now_ns):
            batch = self.decode.batch if self.scheduler.decoding else (0, 0)
            pace = prompt_pace(self.policy, self.settings, self.control, batch)
            self.scheduler.plan(pace, busy_ns((self.decode, self.prefill), pace, out.now_ns), out)

    def _launch(self, out: Outbox) -> None:
        match self.policy:
            case "semipd":
                self._launch_two_lanes(out)
            case "chunked":
                self._launch_merged(self.settings.step_token_budget, out)
            case "prefill-first":
                self._launch_prefill_first(out)

    def _launch_two_lanes(self, out: Outbox) -> None:
        prefill_busy = bool(self.prefill.inflight) or self.scheduler.has_prefill_work()
        decode_busy = bool(self.decode.inflight) or bool(self.scheduler.decoding)
        if self._held is not None:
            self._launch_without_a_lane(self._held, prefill_busy, out)
            return
        choice = self.control.choose(out.now_ns, prefill_busy, decode_busy, self._work_getter(out))
        if not self._has_units(self.decode, choice.split):
            self._decode_beside_prefill(out)
        elif choice.merged_tokens:
            self._launch_merged(choice.merged_tokens, out)
        else:
            self._launch_apart(choice.split, prefill_busy, out)

    def _decode_beside_prefill(self, out: Outbox) -> None:
        """Until the prefill lane's step ends, decode goes on under the split of the step launched last:
        streams shall not stand still for the time of a chunk whenever the split changes."""
        if self.scheduler.decoding and self._may_launch(self.decode, self.split):
            self._launch_step(self.decode, self.split, *self.scheduler.take_decodes(out), [], out)

    def _launch_without_a_lane(self, split: Split, prefill_busy: bool, out: Outbox) -> None:
        """Prompts do not wait for a prefill lane that has lost no chunk: the decode lane takes them too."""
        if self.prefill.executor != "up" and not self.prefill.inflight:
            self.control.hold(self.device.info.solo_decode, out.now_ns)
            self._launch_merged(self.settings.step_token_budget, out)
        else:
            self.control.hold(split, out.now_ns)
            self._launch_apart(split, prefill_busy, out)

    def _launch_apart(self, split: Split, prefill_busy: bool, out: Outbox) -> None:
        if self.scheduler.decoding and self._may_launch(self.decode, split):
            self._launch_step(self.decode, split, *self.scheduler.take_decodes(out), [], out)
        if prefill_busy and self._may_launch(self.prefill, split):
            self._launch_step(self.prefill, split, [], [], self._prefill_chunks(out), out)

    def _prefill_chunks(self, out: Outbox) -> list[Chunk]:
        """A lane that still computes is given the next chunk only where the same one would come next anyway:
        a step full with the prompt that is under way. So depth changes no choice."""
        budget_tokens = self.settings.prefill_chunk_tokens
        if self.prefill.inflight:
            return self.scheduler.take_full_chunk(budget_tokens)
        return self.scheduler.take_chunks(budget_tokens, out)

    def _launch_merged(self, budget_tokens: int, out: Outbox) -> None:
        if self._may_launch(self.decode, self.device.info.solo_decode):
            decodes, grown = self.scheduler.take_decodes(out)
            chunks = self.scheduler.take_chunks(budget_tokens - len(decodes), out)
            self._launch_step(self.decode, self.device.info.solo_decode, decodes, grown, chunks, out)

    def _launch_prefill_first(self, out: Outbox) -> None:
        if self._may_launch(self.decode, self.device.info.solo_decode):
            chunks = self.scheduler.take_chunks(self.settings.step_token_budget, out)
            decodes, grown = ([], []) if chunks else self.scheduler.take_decodes(out)
            self._launch_step(self.decode, self.device.info.solo_decode, decodes, grown, chunks, out)

    def _may_launch(self, state: LaneState, split: Split) -> bool:
        return state.has_room and state.units(split) > 0 and self._has_units(state, split)

    def _has_units(self, state: LaneState, split: Split) -> bool:
        """No step in flight on the other lane holds a unit that this one would have."""
        makes_room = state is self.decode and split.prefill_units > 0 and self.device.info.prefill_moves
        held = 0 if makes_room else self._units_of_other(state)
        return state.units(split) + held <= self.device.info.num_units

    def _units_of_other(self, state: LaneState) -> int:
        """Units that steps in flight on the other lane hold."""
        return self._units_held(self.prefill if state is self.decode else self.decode)

    @staticmethod
    def _units_held(state: LaneState) -> int:
        return max([state.units(flight.plan.split) for flight in state.inflight]) if state.inflight else 0

    def _launch_step(
        self,
        state: LaneState,
        split: Split,
        decodes: list[Sequence],
        grown: list[Growth],
        chunks: list[Chunk],
        out: Outbox,
    ) -> None:
        if not decodes and not chunks:
            return
        switch = self.control.launched(split, out.now_ns)
        if switch is not None:
            out.event(split_changed(switch))
            self.split = split
        if chunks:
            self._forget_elsewhere(state, chunks)
        other_units = self._units_of_other(state)
        state.launch(self._next_step_id, split, decodes, grown, chunks, other_units, out.now_ns)
        self._next_step_id += 1

    def _forget_elsewhere(self, state: LaneState, chunks: list[Chunk]) -> None:
        """A prompt may have begun in the other lane, before or after merged steps. That lane would miss the
        tokens sampled here, so it has to be told anew should the sequence come back."""
        other = self.prefill if state is self.decode else self.decode
        for sequence, _ in chunks:
            other.leave(sequence.seq)

    def _leave_lanes(self, seq: SeqId) -> None:
        self.prefill.leave(seq)
        self.decode.leave(seq)

    def check_integrity(self) -> None:
        """Recompute everything from nothing; AssertionError with the numbers on a mismatch."""
        self.scheduler.check_integrity()
        inflight: dict[SeqId, int] = {}
        for state in (self.prefill, self.decode):
            for flight in state.inflight:
                for sequence in flight.sequences:
                    inflight[sequence.seq] = inflight.get(sequence.seq, 0) + 1
        holders = {**self.scheduler.sequences, **self.scheduler.unsettled}
        counted = {seq: sequence.num_inflight for seq, sequence in holders.items() if sequence.num_inflight}
        assert counted == inflight, f"steps in flight per sequence: {counted} counted, {inflight} found"


def _tpot_ms(sequence: Sequence, now_ns: int) -> float | None:
    """Mean time between this engine's tokens of a request that ends now; None for a single one."""
    num_tokens = sequence.num_output_tokens - len(sequence.request.emitted)
    return (now_ns - sequence.first_token_ns) / 1e6 / (num_tokens - 1) if num_tokens > 1 else None
