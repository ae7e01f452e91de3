"""Admission, prefill order, decode set and preemption: who runs next, on which blocks."""

from collections.abc import Callable, Mapping

from semipd.core.errors import SemipdError
from semipd.core.events import ADMITTED, FINISHED, FIRST_TOKEN, PREEMPTED, QUEUED, TO_BACKGROUND, FinishReason
from semipd.core.messages import Finished
from semipd.core.plan import StepResult
from semipd.core.request import Request, SeqId
from semipd.core.settings import OrderName
from semipd.core.slo import Targets
from semipd.memory.kv import KVMemory, Placement
from semipd.sched.chunks import take_chunk
from semipd.sched.failures import failed, refused, step_failure
from semipd.sched.flight import Chunk, Flight
from semipd.sched.limits import Limits, why_impossible
from semipd.sched.order import Pace
from semipd.sched.outbox import Outbox, send_prompt_logprobs
from semipd.sched.planning import Planning
from semipd.sched.preemption import choose_victim
from semipd.sched.prompts import Prompts
from semipd.sched.sequence import Sequence
from semipd.sched.settle import Settled, settle

WATERMARK_FRAC = 0.01
"""Share of the pool kept free when admitting beside running work, so that growth does not thrash."""

Growth = tuple[Sequence, int]
"""A sequence and the block it was given."""


class Scheduler:
    """Owns every sequence and every KV block: with `settle` the only one to change a Sequence.

        submit ─▶ waiting ─admit─▶ prefilling ─last chunk settles─▶ decoding ─▶ gone
                     ▲                 └──────────preempt──────────────┤
                     └────────────── yielding ◀────────────────────────┘

    Blocks of a sequence that is yielding or gone go back to the pool only when no step in flight
    may still touch them (`_retire`); until then it stands in `unsettled`.

    `leave_lanes` is told the moment a sequence must not be resident in any lane.
    """

    def __init__(
        self, limits: Limits, leave_lanes: Callable[[SeqId], None], order: OrderName = "deadline"
    ) -> None:
        assert limits.max_decode_tokens <= limits.block_size, "a decode may need a block more, never two"
        self.memory = KVMemory(limits.num_blocks, limits.block_size)
        self._prompts = Prompts(order, limits.max_late_ns, self.cached_tokens)
        self.planning = Planning(self._prompts, limits.max_late_ns)
        self.queue = self._prompts.queue
        self.prefilling: list[Sequence] = []
        self.decoding: dict[SeqId, Sequence] = {}
        self.unsettled: dict[SeqId, Sequence] = {}
        self.sequences: dict[SeqId, Sequence] = {}
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self._limits = limits
        self._leave_lanes = leave_lanes
        self._pool_tokens = self.memory.pool.num_usable * limits.block_size
        self._watermark = max(1, int(limits.num_blocks * WATERMARK_FRAC))
        self._refused_at_free: int | None = None

    @property
    def idle(self) -> bool:
        return not self.sequences and not self.unsettled

    @property
    def reserved_blocks(self) -> int:
        """Free blocks that admission keeps for the growth of what runs; 0 when nothing does."""
        return self._watermark if self.prefilling or self.decoding or self.unsettled else 0

    def submit(self, request: Request, out: Outbox) -> None:
        """Queue a request; one that can never fit is answered at once with the arithmetic."""
        assert request.seq not in self.sequences, f"seq {request.seq} submitted twice"
        sequence = Sequence.of(request, self._limits.max_model_len)
        refusal = why_impossible(sequence, self._limits, self.memory.pool.num_usable)
        if refusal:
            out.event(refused(refusal), sequence)
            out.send(failed(sequence, refusal))
            return
        self.sequences[request.seq] = sequence
        self._enqueue(sequence)
        out.event(QUEUED({"prompt_tokens": len(request.prompt)}), sequence)
        if sequence.in_background:
            out.event(TO_BACKGROUND({"reason": "no_target", "expected_start_ms": None}), sequence)
        if len(sequence.tokens) >= sequence.max_total_tokens:  # resumed after its last token
            self.finish(sequence, "length", out)

    def finish(
        self, sequence: Sequence, reason: FinishReason, out: Outbox, stop_token: int | None = None
    ) -> None:
        """The end of a request, whatever its phase."""
        self._end(sequence, Finished(sequence.seq, reason, stop_token, sequence.cached_tokens), out)

    def fail(self, sequence: Sequence, error: SemipdError, out: Outbox) -> None:
        """Likewise, with an error. What was computed since the last `_commit` is never found as a prefix."""
        self._end(sequence, failed(sequence, error), out)

    def _end(self, sequence: Sequence, finished: Finished, out: Outbox) -> None:
        self._withdraw(sequence)
        sequence.phase = "gone"
        del self.sequences[sequence.seq]
        out.send(finished)
        num_tokens = sequence.num_output_tokens
        out.event(FINISHED({"reason": finished.reason, "output_tokens": num_tokens}), sequence)
        self._retire(sequence)

    def settle(self, flight: Flight, result: StepResult, out: Outbox) -> Settled:
        """Account for every sequence of the step and emit its tokens in one message, then end who is done."""
        if result.failed:
            self._end_failed(flight, result.failed, out)
        settled = settle(flight, result, self._limits.block_size, self._limits.max_decode_tokens)
        for sequence in settled.computed:
            self._commit(sequence)
        for sequence in settled.withdrawn:
            self._retire(sequence)
        if flight.chunks:
            self._settle_prompts(settled, out)
        if settled.tokens is not None:
            out.send(settled.tokens)
        for sequence, stop_token in settled.ended:
            self.finish(sequence, "length" if stop_token is None else "stop", out, stop_token)
        return settled

    def _settle_prompts(self, settled: Settled, out: Outbox) -> None:
        for sequence, segment, entries in settled.prompt_logprobs:
            send_prompt_logprobs(sequence, segment, entries, out)
        for sequence in settled.started:
            self._start_decoding(sequence, out.now_ns)
        for sequence in settled.first:
            out.event(FIRST_TOKEN({}), sequence)

    def _end_failed(self, flight: Flight, failed: Mapping[SeqId, str], out: Outbox) -> None:
        """End the sequences that the step has failed, before it is accounted for: so no token and no prefix
        that it computed for them counts. What earlier steps computed is sound, and stays to be found. A
        preempted sequence ends too: it would compute the same again."""
        for sequence in flight.sequences:
            if sequence.seq in failed and sequence.phase != "gone":
                self.fail(sequence, step_failure(failed[sequence.seq], sequence), out)

    def _start_decoding(self, sequence: Sequence, now_ns: int) -> None:
        """The prompt is computed and has yielded its first new token: same blocks, other set."""
        sequence.phase = "decoding"
        self.prefilling.remove(sequence)
        self.decoding[sequence.seq] = sequence
        sequence.first_token_ns = sequence.first_token_ns or now_ns

    def _commit(self, sequence: Sequence) -> None:
        """Its computed blocks become findable as prefixes."""
        assert sequence.placement is not None, f"seq {sequence.seq} computed without blocks"
        self.memory.commit(sequence.placement, sequence.tokens, sequence.num_computed)

    def _retire(self, sequence: Sequence) -> None:
        """Give back the blocks of a yielding or gone sequence once no step in flight may touch them."""
        if sequence.num_inflight:
            self.unsettled[sequence.seq] = sequence
            return
        self.unsettled.pop(sequence.seq, None)
        if sequence.placement is not None:
            self.memory.release(sequence.placement)
            sequence.placement = None
        if sequence.phase == "yielding":
            sequence.phase = "waiting"
            sequence.num_scheduled = sequence.num_computed = sequence.decode_limit = 0
            self._enqueue(sequence)

    def take_decodes(self, out: Outbox) -> tuple[list[Sequence], list[Growth]]:
        """Sequences that advance, each with slots for it, and the blocks that were added.

        Marks the step as launched. Under pressure this preempts (also prefilling sequences); a sequence
        whose block is still on its way sits this step out.
        """
        ready = [s for s in self.decoding.values() if s.num_scheduled < s.decode_limit]
        grown: list[Growth] = []
        if len(ready) < len(self.decoding):
            grown = self._grow(out)
            ready = [s for s in self.decoding.values() if s.num_scheduled < s.decode_limit]
        most = self._limits.max_decode_tokens
        for sequence in ready:
            sequence.num_scheduled += most
            sequence.num_inflight += 1
        return ready, grown

    def _grow(self, out: Outbox) -> list[Growth]:
        """A block for each whose blocks are full, oldest first; the latest arrivals pay."""
        grown: list[Growth] = []
        num_stalled = 0
        short = [s for s in self.decoding.values() if s.decode_limit <= s.num_scheduled < s.max_computed]
        for sequence in sorted(short, key=lambda s: s.age_key) if len(short) > 1 else short:
            self._make_room(sequence, num_stalled, out)
            if sequence.phase != "decoding":
                continue
            if not self.memory.pool.num_free:
                num_stalled += 1
                continue
            assert sequence.placement is not None, f"seq {sequence.seq} decodes without blocks"
            grown.append((sequence, self.memory.grow(sequence.placement)))
            self._note_slots(sequence, sequence.placement)
        return [(s, block) for s, block in grown if s.phase == "decoding"]

    def _note_slots(self, sequence: Sequence, placement: Placement) -> None:
        room = self.memory.num_token_slots(placement) - self._limits.max_decode_tokens
        sequence.decode_limit = min(sequence.max_computed, room + 1)

    def _make_room(self, sequence: Sequence, num_stalled: int, out: Outbox) -> None:
        """Preempt until a block is free or on its way, or until the sequence itself had to yield."""
        while not self.memory.pool.num_free and sequence.phase == "decoding":
            coming = sum(len(s.placement.blocks) for s in self.unsettled.values() if s.placement is not None)
            victim = choose_victim([*self.prefilling, *self.decoding.values()])
            if coming > num_stalled or victim is None:
                return
            self._preempt(victim, out)

    def _preempt(self, sequence: Sequence, out: Outbox) -> None:
        """Take its blocks away; its tokens stay and will be computed again."""
        assert sequence.placement is not None, f"seq {sequence.seq} has nothing to give"
        self._withdraw(sequence)
        sequence.phase = "yielding"
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        blocks = len(sequence.placement.blocks)
        out.event(PREEMPTED({"tokens_lost": sequence.num_computed, "blocks": blocks}), sequence)
        self._retire(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        match sequence.phase:
            case "prefilling":
                self.prefilling.remove(sequence)
            case "decoding":
                del self.decoding[sequence.seq]
        self._prompts.remove(sequence)
        self._leave_lanes(sequence.seq)

    def _enqueue(self, sequence: Sequence) -> None:
        self._prompts.add(sequence)
        self._refused_at_free = None

    def plan(self, pace: Pace, busy_ns: float, out: Outbox) -> None:
        """See sched.planning."""
        plan = self.planning.plan(self.sequences, self.prefilling, pace, busy_ns, out)
        for sequence, error in plan.refused:
            out.event(refused(error), sequence)
            self.fail(sequence, error, out)
        if plan.has_changed:
            self._refused_at_free = None

    def retarget(self, service_class: str, before: Targets, after: Targets) -> int:
        """See Prompts.retarget."""
        self._refused_at_free = None
        return self._prompts.retarget(self.sequences.values(), service_class, before, after)

    def has_prefill_work(self) -> bool:
        return self.queue.num_begun > 0 or (self.queue.num_waiting > 0 and self._may_admit())

    def take_chunks(self, budget_tokens: int, out: Outbox) -> list[Chunk]:
        """Chunks within the budget, in the order of the queue.

        Marks them as launched. Requests are placed only when their first chunk is due, so that they
        find the prefixes computed until then. Nobody is placed past one that found no room.
        """
        chunks: list[Chunk] = []
        if not self.queue:
            return chunks
        may_place, was_turn = True, self.queue.is_backgrounds_turn
        for prompt in self.queue.in_order():
            sequence = self.sequences[prompt.seq]
            if not prompt.is_begun:
                may_place = may_place and self._place(sequence, out)
            if prompt.is_begun:
                budget_tokens -= take_chunk(sequence, budget_tokens, chunks)
            if budget_tokens <= 0 or not (may_place or self.queue.num_begun):
                break
        if chunks or was_turn:
            self._prompts.took_step(chunks)
        if not chunks and was_turn and not self.queue.is_backgrounds_turn:
            return self.take_chunks(budget_tokens, out)
        return chunks

    def take_full_chunk(self, budget_tokens: int) -> list[Chunk]:
        """The next chunk of the prompt that comes first, if it is under way and fills the budget; else none.
        Places nobody, and launches nothing of a prompt of which no chunk is in flight."""
        chunks: list[Chunk] = []
        first = next((p for p in self.queue.in_order() if p.is_begun or self._may_admit()), None)
        begun = self.sequences[first.seq] if first is not None and first.is_begun else None
        if begun is not None and begun.num_inflight and begun.tokens_left >= budget_tokens:
            take_chunk(begun, budget_tokens, chunks)
            self._prompts.took_step(chunks)
        return chunks

    def _may_admit(self) -> bool:
        """A seat is free, and memory has changed since the last refusal."""
        if len(self.prefilling) + len(self.decoding) >= self._limits.max_num_seqs:
            return False
        return self._refused_at_free is None or self.memory.pool.num_free > self._refused_at_free

    def _place(self, sequence: Sequence, out: Outbox) -> bool:
        """Give a waiting prompt its blocks; or not, remembering at which level of free blocks."""
        if not self._may_admit() or not self._prompts.may_begin(sequence, self.prefilling, self._pool_tokens):
            return False
        reuse, namespace = sequence.may_reuse, sequence.request.namespace
        if not self.memory.can_place(namespace, sequence.tokens, self.reserved_blocks, reuse=reuse):
            self._refused_at_free = self.memory.pool.num_free
            return False
        sequence.placement = self.memory.place(namespace, sequence.tokens, reuse=reuse)
        self._note_slots(sequence, sequence.placement)
        sequence.num_scheduled = sequence.num_computed = sequence.placement.num_cached_tokens
        sequence.phase = "prefilling"
        self.prefilling.append(sequence)
        self._prompts.begin(sequence)
        self._refused_at_free = None
        self._note_admission(sequence, out)
        return True

    def cached_tokens(self, sequence: Sequence) -> int:
        if not sequence.may_reuse:
            return 0
        return self.memory.cached_tokens(sequence.request.namespace, sequence.tokens)

    def _note_admission(self, sequence: Sequence, out: Outbox) -> None:
        """Hit statistics count a request's first admission only."""
        cached = sequence.num_computed
        if not sequence.num_preemptions:
            sequence.cached_tokens = cached
            self.num_prompt_tokens += len(sequence.request.prompt)
            self.num_cached_tokens += cached
        out.event(ADMITTED({"cached_tokens": cached, "tokens": len(sequence.tokens)}), sequence)

    def check_integrity(self) -> None:
        """Recompute sets, blocks and counters from nothing; AssertionError with the numbers on a mismatch."""
        self._prompts.check_integrity(self.sequences.values())
        waiting = [s for s in self.sequences.values() if s.phase == "waiting"]
        living = [*waiting, *self.prefilling, *self.decoding.values()]
        yielding = [s for s in self.unsettled.values() if s.phase == "yielding"]
        assert len(living) + len(yielding) == len(self.sequences), "a sequence stands in no set, or in two"
        assert {s.seq for s in [*living, *yielding]} == set(self.sequences), "the sets hold strangers"
        assert all(s.phase == "prefilling" for s in self.prefilling), "not prefilling"
        assert all(s.phase == "decoding" for s in self.decoding.values()), "not decoding"
        assert len(self.prefilling) + len(self.decoding) <= self._limits.max_num_seqs, "too many seats taken"
        for s in self.decoding.values():
            most = s.num_computed + s.num_inflight * self._limits.max_decode_tokens
            assert s.num_scheduled == most, f"seq {s.seq}: {s.num_scheduled} tokens scheduled, not {most}"
        holders = [*living, *self.unsettled.values()]
        for sequence in holders:
            sequence.check_integrity()
            slots = self.memory.num_token_slots(sequence.placement) if sequence.placement else 0
            assert sequence.num_scheduled <= slots, f"seq {sequence.seq}: {sequence.num_scheduled} of {slots}"
        self.memory.check_integrity([s.placement for s in holders if s.placement is not None])
