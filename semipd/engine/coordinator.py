"""The coordinator: one loop, five verbs.

    receive   new requests, cancels, status questions
    settle    finished steps: emit tokens, free blocks, move prefilled requests to the decode set
    decide    which split holds now
    launch    decode first, then the next prefill chunk, each only if its lane has room
    wait      the host's part

`tick` runs the first four and never blocks; time enters only as `now_ns`. No torch. So the same object
runs in the engine process, in tests against the fake device, and under a virtual clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from semipd.core.messages import (
    Cancel,
    GetStatus,
    Inbound,
    Outbound,
    PromptLogprobs,
    Status,
    StepTokens,
    Submit,
)
from semipd.core.plan import BLOCK_SIZE, Segment, StepResult
from semipd.core.request import SeqId
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.split import Split
from semipd.devices.contract import Device
from semipd.engine.lane_state import Flight, LaneState
from semipd.engine.status import engine_status
from semipd.partition.lending import Lending, choose_split
from semipd.sched.outbox import Outbox
from semipd.sched.scheduler import Chunk, Growth, Limits, Scheduler
from semipd.sched.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Turn:
    """Result of one tick. `wake_at_ns`: tick again by then even if nothing arrives. `idle`: nothing lives."""

    outbox: list[Outbound]
    wake_at_ns: int | None
    idle: bool


class Coordinator:
    """Ties the scheduler's choices to the lanes of a device."""

    def __init__(self, device: Device, settings: EngineSettings) -> None:
        info = device.info
        self.device = device
        self.settings = settings
        self.policy: SchedulerName = settings.scheduler
        if not info.splits and settings.scheduler == "semipd":
            self.policy = "chunked"  # the device cannot be divided; the engine process says so at start
        self.prefill = LaneState(device.prefill)
        self.decode = LaneState(device.decode)
        limits = Limits(info.max_model_len, settings.max_num_seqs, info.num_blocks)
        self.scheduler = Scheduler(limits, self._leave_lanes)
        self.split = info.solo_decode
        self._lending = self._make_lending()
        self._next_step_id = 1

    def tick(self, now_ns: int, inbox: Iterable[Inbound] = ()) -> Turn:
        """One turn of the loop. Never blocks. Raises LaneFailed when a lane cannot go on."""
        out = Outbox(now_ns)
        self._receive(inbox, out)
        self._settle(out)
        self._launch(out)
        return Turn(out.messages, self.device.wake_at_ns(), self.scheduler.idle)

    # ---- receive -------------------------------------------------------------------------------

    def _receive(self, inbox: Iterable[Inbound], out: Outbox) -> None:
        for message in inbox:
            match message:
                case Submit(request):
                    self.scheduler.submit(request, out)
                case Cancel(seq):
                    if seq in self.scheduler.sequences:
                        self.scheduler.finish(self.scheduler.sequences[seq], "cancelled", out)
                case GetStatus(nonce):
                    out.send(Status(nonce, engine_status(self, out.now_ns)))

    # ---- settle --------------------------------------------------------------------------------

    def _settle(self, out: Outbox) -> None:
        for state in (self.decode, self.prefill):
            for result in state.lane.poll(out.now_ns):
                self._settle_step(state.settle(result, out.now_ns), result, out)

    def _settle_step(self, flight: Flight, result: StepResult, out: Outbox) -> None:
        """Account for every sequence of the step, emit its tokens in one message, then end who is done."""
        live = self._settle_decodes(flight.decodes, result.tokens)
        live += self._settle_chunks(flight, result, out)
        if live:
            out.send(_step_tokens(flight, result, live))
        sampled = flight.sampled
        for idx in live:
            self._end_if_done(sampled[idx], result.tokens[idx], out)

    def _settle_decodes(self, decodes: list[Sequence], tokens: list[int]) -> list[int]:
        """Append each token. Returns the indices of those that count: their sequence still decodes."""
        live: list[int] = []
        for idx, sequence in enumerate(decodes):
            sequence.num_inflight -= 1
            if sequence.phase != "decoding":
                self.scheduler.retire(sequence)
                continue
            sequence.tokens.append(tokens[idx])
            sequence.num_computed += 1
            if not sequence.num_computed % BLOCK_SIZE:
                self.scheduler.commit(sequence)
            live.append(idx)
        return live

    def _settle_chunks(self, flight: Flight, result: StepResult, out: Outbox) -> list[int]:
        """Advance prefilling sequences; a sampled one starts to decode. Returns indices as above."""
        live: list[int] = []
        idx = len(flight.decodes)
        for sequence, segment in flight.chunks:
            sequence.num_inflight -= 1
            if sequence.phase != "prefilling":
                self.scheduler.retire(sequence)
            else:
                sequence.num_computed = segment.start + segment.length
                self.scheduler.commit(sequence)
                _send_prompt_logprobs(sequence, segment, result, out)
                if segment.sample:
                    self._start_decoding(sequence, result.tokens[idx], out)
                    live.append(idx)
            idx += segment.sample
        return live

    def _start_decoding(self, sequence: Sequence, token: int, out: Outbox) -> None:
        self.scheduler.start_decoding(sequence, token)
        if self.policy == "semipd":
            self.prefill.leave(sequence.seq)
        if not sequence.first_token_ns:
            sequence.first_token_ns = out.now_ns
            out.event("first_token", sequence)

    def _end_if_done(self, sequence: Sequence, token: int, out: Outbox) -> None:
        if token in sequence.stop_ids and sequence.may_stop:
            self.scheduler.finish(sequence, "stop", out, stop_token=token)
        elif len(sequence.tokens) >= sequence.max_total_tokens:
            self.scheduler.finish(sequence, "length", out)

    # ---- decide and launch ---------------------------------------------------------------------

    def _launch(self, out: Outbox) -> None:
        match self.policy:
            case "semipd":
                self._launch_two_lanes(out)
            case "chunked":
                self._launch_merged(out)
            case "prefill-first":
                self._launch_prefill_first(out)

    def _launch_two_lanes(self, out: Outbox) -> None:
        prefill_busy = bool(self.prefill.inflight) or self.scheduler.has_prefill_work()
        decode_busy = bool(self.decode.inflight) or bool(self.scheduler.decoding)
        split = self._lending.split(prefill_busy, decode_busy)
        if self.scheduler.decoding and self._may_launch(self.decode, split):
            self._launch_step(self.decode, split, *self.scheduler.take_decodes(out), [], out)
        if prefill_busy and self._may_launch(self.prefill, split):
            chunks = self.scheduler.take_chunks(self.settings.prefill_chunk_tokens, out)
            self._launch_step(self.prefill, split, [], [], chunks, out)

    def _launch_merged(self, out: Outbox) -> None:
        if self._may_launch(self.decode, self.device.info.solo_decode):
            decodes, grown = self.scheduler.take_decodes(out)
            chunks = self.scheduler.take_chunks(self.settings.step_token_budget - len(decodes), out)
            self._launch_step(self.decode, self.device.info.solo_decode, decodes, grown, chunks, out)

    def _launch_prefill_first(self, out: Outbox) -> None:
        if self._may_launch(self.decode, self.device.info.solo_decode):
            chunks = self.scheduler.take_chunks(self.settings.step_token_budget, out)
            decodes, grown = ([], []) if chunks else self.scheduler.take_decodes(out)
            self._launch_step(self.decode, self.device.info.solo_decode, decodes, grown, chunks, out)

    def _may_launch(self, state: LaneState, split: Split) -> bool:
        """Room in the lane, and no unit that a step in flight on the other lane still holds."""
        other = self.prefill if state is self.decode else self.decode
        held = max((other.units(flight.plan.split) for flight in other.inflight), default=0)
        units = state.units(split)
        return units > 0 and units + held <= self.device.info.num_units and state.lane.capacity() > 0

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
        if split != self.split:
            change = {"from": list(self.split), "to": list(split), "reason": "lending"}
            out.event("split_changed", None, **change)
            self.split = split
        state.launch(self._next_step_id, split, decodes, grown, chunks, out.now_ns)
        self._next_step_id += 1

    # ---- the rest ------------------------------------------------------------------------------

    def _leave_lanes(self, seq: SeqId) -> None:
        self.prefill.leave(seq)
        self.decode.leave(seq)

    def _make_lending(self) -> Lending:
        info = self.device.info
        if self.policy != "semipd":
            return Lending(info.solo_decode, info.solo_decode, info.solo_decode)
        shared = choose_split(info.splits, self.settings.prefill_units, info.unit)
        return Lending(shared, info.solo_prefill, info.solo_decode)

    def check_integrity(self) -> None:
        """Recompute everything from nothing; AssertionError with the numbers on a mismatch."""
        self.scheduler.check_integrity()
        inflight: dict[SeqId, int] = {}
        for state in (self.prefill, self.decode):
            for flight in state.inflight:
                for sequence in [*flight.decodes, *(s for s, _ in flight.chunks)]:
                    inflight[sequence.seq] = inflight.get(sequence.seq, 0) + 1
        holders = {**self.scheduler.sequences, **self.scheduler.unsettled}
        counted = {seq: sequence.num_inflight for seq, sequence in holders.items() if sequence.num_inflight}
        assert counted == inflight, f"steps in flight per sequence: {counted} counted, {inflight} found"


def _step_tokens(flight: Flight, result: StepResult, live: list[int]) -> StepTokens:
    """The step's tokens that count; as they came when all do, which is the common case."""
    if len(live) == len(flight.plan.decode) == len(result.tokens):
        return StepTokens(flight.plan.decode, result.tokens, result.logprobs)
    sampled = flight.sampled
    seqs = tuple(sampled[idx].seq for idx in live)
    logprobs = None if result.logprobs is None else [result.logprobs[idx] for idx in live]
    return StepTokens(seqs, [result.tokens[idx] for idx in live], logprobs)


def _send_prompt_logprobs(sequence: Sequence, segment: Segment, result: StepResult, out: Outbox) -> None:
    """Entries not sent before: a preempted request computes its prompt twice."""
    entries = (result.prompt_logprobs or {}).get(sequence.seq, [])
    fresh = entries[max(sequence.num_prompt_logprobs - segment.start, 0) :]
    if fresh:
        sequence.num_prompt_logprobs += len(fresh)
        out.send(PromptLogprobs(sequence.seq, fresh))
