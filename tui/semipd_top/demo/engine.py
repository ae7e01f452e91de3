"""The demo's engine: a queue, a KV pool and two lanes, in turns of a tenth of a second."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any

from semipd_top.demo.gpu import (
    BLOCK_TOKENS,
    CHUNK_TOKENS,
    NUM_SMS,
    TOTAL_BLOCKS,
    Batch,
    Sensors,
    decode_ms,
    merged_ms,
    prefill_ms,
)
from semipd_top.demo.lanes import Lane, Pool, Turn
from semipd_top.demo.partition import SOLO_DECODE, Choice, Control
from semipd_top.demo.policy import Prompt, Work
from semipd_top.demo.requests import DemoHistory, DemoRequest

MAX_NUM_SEQS = 64
RESERVED_BLOCKS = TOTAL_BLOCKS // 100
MAX_HOLDERS = 8
SLOW_STEP_MS = 1300.0
TYPICAL_STEP_MS = 15.0


@dataclass(slots=True)
class DemoEngine:
    """One engine's life. Times are seconds since the demo began."""

    history: DemoHistory
    control: Control
    sensors: Sensors
    rng: random.Random
    pool: Pool = field(default_factory=Pool)
    prefill: Lane = field(default_factory=Lane)
    decode: Lane = field(default_factory=Lane)
    waiting: list[DemoRequest] = field(default_factory=list)
    prefilling: list[DemoRequest] = field(default_factory=list)
    decoding: list[DemoRequest] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    stalled_since: float | None = None
    stalled_until: float = 0.0

    # ---- in and out ----------------------------------------------------------------------------

    def submit(self, request: DemoRequest, at: float) -> None:
        """Also one that another engine has begun."""
        request.is_held, request.state = False, "waiting"
        self.history.note(request, at, "queued", prompt_tokens=request.draft.prompt_tokens)
        self._wait(request)

    def cancel(self, request: DemoRequest) -> None:
        """It is over: its blocks are free."""
        for group in (self.waiting, self.prefilling, self.decoding):
            if request in group:
                group.remove(request)
        self._displace(request, cached=True)

    def die(self) -> list[DemoRequest]:
        """Everything is lost but what the daemon knows; returns who was in flight."""
        in_flight = [*self.waiting, *self.prefilling, *self.decoding]
        for request in in_flight:
            self._displace(request, cached=False)
            request.is_held, request.state = True, "waiting"
        return in_flight

    def stall(self, at: float) -> None:
        """The next decode step takes very long."""
        self.stalled_since, self.stalled_until = at, at + SLOW_STEP_MS / 1e3

    # ---- a turn --------------------------------------------------------------------------------

    def turn(self, start: float, end: float) -> None:
        self._hang_up(start, end)
        self._end_stall(end)
        self._admit(start, end)
        batch = self._batch()
        choice = self.control.choose(start, self.work(start), bool(self.prefilling))
        turn = Turn(start, end, choice)
        prefill_s = self._prefill(turn, batch)
        self._decode(turn, batch, prefill_s)
        self._launch(turn, prefill_s)
        self.sensors.pass_time(turn.seconds, self._busy_frac(turn, batch, prefill_s))

    def work(self, now: float) -> Work:
        prompts = [
            Prompt(r.seq, r.left_tokens, r.tokens - r.left_tokens, max(now - r.due, 0.0) * 1e3)
            for r in self.prefilling
        ]
        prompts += [
            Prompt(r.seq, r.tokens, 0, max(now - r.due, 0.0) * 1e3) for r in self.waiting[:MAX_NUM_SEQS]
        ]
        return Work(self._batch(), prompts)

    def _batch(self) -> Batch:
        return Batch(len(self.decoding), sum(request.tokens for request in self.decoding))

    def _hang_up(self, start: float, end: float) -> None:
        """Clients that have lost their patience."""
        for request in [*self.waiting, *self.prefilling, *self.decoding]:
            if end > (at := request.arrived + request.draft.patience_s):
                self.cancel(request)
                self.history.finish(request, max(at, start), "cancelled")

    def _end_stall(self, now: float) -> None:
        if self.stalled_since is None or now < self.stalled_until:
            return
        batch = self._batch()
        told = {
            "lane": "decode",
            "step_id": self.prefill.steps + self.decode.steps + 1,
            "busy_ms": SLOW_STEP_MS,
            "predicted_ms": decode_ms(batch, NUM_SMS),
            "units": NUM_SMS,
            "new_tokens": 0,
            "num_decodes": batch.num_decodes,
        }
        self.history.journal.add(self.stalled_until, "slow_step", told)
        self.decode.slow_steps += 1
        self.stalled_since = None

    def _admit(self, start: float, end: float) -> None:
        """In the order of the queue, as far as there are places and blocks."""
        while self.waiting and len(self.prefilling) + len(self.decoding) < MAX_NUM_SEQS:
            request = self.waiting[0]
            needed = request.needed_blocks()
            if needed + self.reserved_blocks > self.pool.free_blocks or request.arrived >= end:
                return
            self.waiting.pop(0)
            self.pool.take(needed)
            request.blocks, request.is_placed, request.state = needed, True, "prefilling"
            self._look_up(request, max(start, request.arrived + 0.0004))
            self.prefilling.append(request)

    def _look_up(self, request: DemoRequest, at: float) -> None:
        """How much of it the prefix cache still holds."""
        cached = min(request.draft.shared_tokens, request.tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if self.pool.cached_blocks * BLOCK_TOKENS < cached:
            cached = 0
        request.left_tokens = request.tokens - cached
        if request.admitted is None:
            request.admitted, request.cached_tokens = at, cached
        self.prompt_tokens += request.tokens
        self.cached_tokens += cached
        self.history.note(request, at, "admitted", cached_tokens=cached, tokens=request.tokens)

    def _prefill(self, turn: Turn, batch: Batch) -> float:
        """Prompts in order; returns how long that took, in seconds."""
        cursor, busy_s, tokens, num_ended = turn.start, 0.0, 0.0, 0
        for request in list(self.prefilling):
            began = max(cursor, request.admitted or turn.start)
            if began >= turn.end:
                break
            ms_per_token = self._ms_per_token(turn, batch, request)
            most = (turn.end - began) * 1e3 / ms_per_token
            done = min(request.left_tokens, most)
            cursor = began + done * ms_per_token / 1e3
            busy_s += cursor - began
            tokens += done
            request.left_tokens -= done
            if request.left_tokens < 1e-6:
                num_ended += 1
                self._join(request, min(cursor, turn.end))
        self._count_prefill(turn, batch, busy_s, tokens, num_ended)
        return busy_s

    def _ms_per_token(self, turn: Turn, batch: Batch, request: DemoRequest) -> float:
        if turn.choice.merged_tokens:
            chunk = max(turn.choice.merged_tokens - batch.num_decodes, 1)
            return merged_ms(batch, chunk) / chunk
        new_tokens = min(request.left_tokens, CHUNK_TOKENS)
        prior_tokens = request.tokens - request.left_tokens
        return prefill_ms(new_tokens, prior_tokens, turn.choice.split[0]) / new_tokens

    def _count_prefill(self, turn: Turn, batch: Batch, busy_s: float, tokens: float, num_ended: int) -> None:
        turn.shared_s = busy_s if batch.num_decodes else 0.0
        if turn.choice.merged_tokens:
            self.decode.prefill_tokens += round(tokens)
            return
        self.prefill.prefill_tokens += round(tokens)
        ended = self.prefill.work(busy_s, tokens / CHUNK_TOKENS + num_ended, turn.end)
        self.control.observe("prefill", ended, 0.0, False, busy_s / turn.seconds)

    def _join(self, request: DemoRequest, at: float) -> None:
        """Its prompt is computed: it decodes from now on."""
        self.prefilling.remove(request)
        self.decoding.append(request)
        request.state, request.joined = "decoding", at
        if request.first is None:
            if not self._take_blocks(request, 1, at):
                return
            self.history.first_token(request, at)
            self.control.first_token(request.seq, (at - request.due) * 1e3)
        if request.output_tokens >= request.draft.output_tokens:
            self._finish(request, at)

    def _decode(self, turn: Turn, batch: Batch, prefill_s: float) -> None:
        """Everybody's share of the steps of this turn."""
        if not self.decoding or self.stalled_since is not None:
            if self.stalled_since is not None:
                self.decode.busy_ms += turn.seconds * 1e3
            return
        noise = self.rng.uniform(0.97, 1.04)
        if turn.choice.merged_tokens:
            shared_ms = merged_ms(batch, max(turn.choice.merged_tokens - batch.num_decodes, 1)) * noise
        else:
            shared_ms = decode_ms(batch, turn.choice.split[1] or NUM_SMS) * noise
        solo_ms = decode_ms(batch, NUM_SMS) * noise
        solo_s = turn.seconds - turn.shared_s
        shared_steps, solo_steps = turn.shared_s * 1e3 / shared_ms, solo_s * 1e3 / solo_ms
        self._count_decode(turn, shared_steps, solo_steps, shared_ms)
        for request in list(self.decoding):
            if request.state == "decoding":
                self._grow(request, turn, shared_steps + solo_steps)

    def _count_decode(self, turn: Turn, shared: float, solo: float, shared_ms: float) -> None:
        ended = self.decode.work(turn.seconds, shared + solo, turn.end)
        phase = "merged" if turn.choice.merged_tokens and shared else "decode"
        num_shared = round(ended * shared / (shared + solo))
        duty = turn.shared_s / turn.seconds
        self.control.observe(phase, num_shared, shared_ms, turn.shared_s > 0, duty)
        self.control.observe("decode", ended - num_shared, 0.0, False, duty)

    def _grow(self, request: DemoRequest, turn: Turn, num_steps: float) -> None:
        """Tokens of one request. It may be preempted on the way, or end."""
        began = max(turn.start, request.joined)
        rate = num_steps / turn.seconds
        decoded = request.decoded + rate * (turn.end - began)
        new = min(int(decoded), request.draft.output_tokens) - request.output_tokens
        if new > 0:
            if not self._take_blocks(request, new, turn.end):
                return
            request.output_tokens += new
            request.last = began + (request.output_tokens - request.decoded) / rate
            self.history.output_tokens += new
            self.decode.decode_tokens += new
        request.decoded = decoded
        if request.output_tokens >= request.draft.output_tokens:
            self._finish(request, request.last or turn.end)

    def _take_blocks(self, request: DemoRequest, num_tokens: int, at: float) -> bool:
        """False: there was no way but to preempt this very request."""
        more = -(-(request.tokens + num_tokens) // BLOCK_TOKENS) - request.blocks
        while more > self.pool.free_blocks:
            victim = max(self.decoding, key=lambda r: r.due)
            self._preempt(victim, at)
            if victim is request:
                return False
        self.pool.take(max(more, 0))
        request.blocks += max(more, 0)
        return True

    def _preempt(self, request: DemoRequest, at: float) -> None:
        self.preemptions += 1
        request.preemptions += 1
        self.decoding.remove(request)
        blocks = request.blocks
        self.history.note(request, at, "preempted", tokens_lost=request.tokens, blocks=blocks)
        self._displace(request, cached=True)
        request.state = "waiting"
        self._wait(request)

    def _finish(self, request: DemoRequest, at: float) -> None:
        self.decoding.remove(request)
        self._displace(request, cached=True)
        is_cut = request.draft.output_tokens == request.draft.max_tokens
        self.history.finish(request, at, "length" if is_cut else "stop")

    def _displace(self, request: DemoRequest, *, cached: bool) -> None:
        self.pool.give(request.blocks, cached=cached)
        request.blocks, request.is_placed = 0, False

    def _wait(self, request: DemoRequest) -> None:
        self.waiting.append(request)
        self.waiting.sort(key=lambda r: (r.due, r.seq))

    def _launch(self, turn: Turn, prefill_s: float) -> None:
        """A lane that finds no work lends its units."""
        if prefill_s:
            self.control.launch(turn.start, turn.choice)
        if self.decoding and not self.prefilling:
            self.control.launch(turn.end, Choice(SOLO_DECODE, 0, "lending", "only decode has work"))

    def _busy_frac(self, turn: Turn, batch: Batch, prefill_s: float) -> float:
        return min(1.0, (0.55 if batch.num_decodes else 0.0) + 0.6 * prefill_s / turn.seconds)

    # ---- for frames ----------------------------------------------------------------------------

    @property
    def reserved_blocks(self) -> int:
        return RESERVED_BLOCKS if self.prefilling or self.decoding else 0

    def lanes(self, now: float) -> dict[str, Any]:
        merges = bool(self.prefilling and self.control.is_merging)
        prefills = bool(self.prefilling) and not merges
        residents = {"prefill": len(self.prefilling), "decode": len(self.decoding)}
        in_flight = {"prefill": prefills, "decode": bool(self.decoding) or merges}
        named: Mapping[str, Lane] = {"prefill": self.prefill, "decode": self.decode}
        return {
            name: {
                "steps": lane.steps,
                "slow_steps": lane.slow_steps,
                "steps_in_flight": int(in_flight[name]),
                "residents": residents[name],
                "prefill_tokens": lane.prefill_tokens,
                "decode_tokens": lane.decode_tokens,
                "busy_ms": lane.busy_ms,
                "last_step_age_ms": None if lane.last_step is None else (now - lane.last_step) * 1e3,
                "step_age_ms": self._step_age_ms(name, now) if in_flight[name] else None,
            }
            for name, lane in named.items()
        }

    def _step_age_ms(self, lane: str, now: float) -> float:
        if lane == "decode" and self.stalled_since is not None:
            return (now - self.stalled_since) * 1e3
        spare_steps = self.decode.spare_steps if lane == "decode" else self.prefill.spare_steps
        return TYPICAL_STEP_MS * spare_steps

    def kv(self) -> dict[str, Any]:
        placed = [*self.prefilling, *self.decoding]
        holders = nlargest(MAX_HOLDERS, placed, key=lambda request: request.tokens)
        return {
            "block_tokens": BLOCK_TOKENS,
            "total_blocks": TOTAL_BLOCKS,
            "used_blocks": self.pool.used_blocks,
            "free_blocks": self.pool.free_blocks,
            "cached_blocks": self.pool.cached_blocks,
            "reserved_blocks": self.reserved_blocks,
            "holders": [request.to_holder() for request in holders],
        }

    def in_flight(self) -> Iterator[DemoRequest]:
        yield from (*self.waiting, *self.prefilling, *self.decoding)
