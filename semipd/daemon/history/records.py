"""What happened to each request: one record per live and recent sequence."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nlargest
from operator import attrgetter
from typing import get_args

from semipd.core.events import (
    ADMITTED,
    ARRIVED,
    DRAIN_CHANGED,
    ENGINE_DIED,
    ENGINE_RESTARTED,
    FINISHED,
    FIRST_BYTE,
    REFUSED,
    REQUEST_RESUMED,
    TO_BACKGROUND,
    WORKER_DIED,
    DrainChanged,
    Event,
    FinishReason,
    RequestFinished,
    Told,
)
from semipd.core.plan import blocks_for
from semipd.core.request import Request, RequestStage, SeqId
from semipd.core.slo import DEFAULT_CLASS, ITL_PERCENTILE
from semipd.core.state.requests import RequestRow
from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.terms import DEFAULT_TERMS, Terms
from semipd.daemon.history.journal import Journal
from semipd.daemon.history.record import RequestRecord
from semipd.system.clock import SYSTEM_CLOCK, Clock

log = logging.getLogger(__name__)

STATES: tuple[str, ...] = (*get_args(RequestStage), "live")
"""What a listing can be filtered by; live: all but finished."""

MAX_RECENT = 1024
MAX_HOLDERS = 8
"""Requests named as the largest holders of KV blocks."""

MAX_TIMELINE = 64
"""Entries a record keeps; a request preempted again and again must not grow without bound."""


class RequestHistory:
    """Told by the request table of every edge. `on_*` are called with what has just happened."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.journal = Journal(clock=clock)
        self.block_size = 0
        """Tokens per KV block of the engine; 0: none has been ready."""
        self.prompt_tokens = 0
        """Of requests that have been prefilled, cached ones included."""
        self.output_tokens = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0
        self.preemptions = 0
        self.engine_deaths = 0
        self.worker_deaths: Counter[str] = Counter()
        """By lane."""
        self.resumptions = 0
        """Of requests, by an engine that came after a death."""
        self.refused: Counter[str] = Counter()
        self.last_split_change: Event | None = None
        self.itl_percentile = ITL_PERCENTILE
        """Of a request's own inter-token times."""
        self.on_gap: list[Callable[[int, int], None]] = []
        """(ns since the sequence's token before, how many sequences of the step)"""
        self.on_arrived: list[Callable[[RequestRecord, Request], None]] = []
        self.on_placed: list[Callable[[RequestRecord], None]] = []
        """The first admission to the KV pool."""
        self.on_first_sent: list[Callable[[RequestRecord], None]] = []
        self.on_finished: list[Callable[[RequestRecord], None]] = []
        self.on_refused: list[Callable[[str, str], None]] = []
        """(the error's code, the service class as far as it was known)"""
        self.on_slo_changed: list[Callable[[Event], None]] = []
        self._clock_ns = clock.monotonic_ns
        self._live: dict[SeqId, RequestRecord] = {}
        self._recent: deque[RequestRecord] = deque(maxlen=MAX_RECENT)

    def arrived(self, request: Request, terms: Terms = DEFAULT_TERMS) -> RequestRecord:
        num_prompt, most = len(request.prompt), request.params.max_tokens
        record = RequestRecord(
            request.request_id,
            request.seq,
            num_prompt,
            most,
            request.arrival_ns,
            terms.owner,
            terms.service,
            terms.num_choices,
        )
        self._live[request.seq] = record
        self._write(record, request.arrival_ns, ARRIVED({"prompt_tokens": num_prompt, "max_tokens": most}))
        for observe in self.on_arrived:
            observe(record, request)
        return record

    def stepped(self, records: Sequence[RequestRecord], now_ns: int) -> None:
        """A record has one more token for each time it stands there, one after another: these come together,
        with one gap before them. Called once a step; most of a batch share a gap."""
        gaps: dict[int, int] = {}
        previous: RequestRecord | None = None
        for record in records:
            record.output_tokens += 1
            if record is previous:
                continue
            previous = record
            last_ns = record.last_token_ns
            if last_ns in gaps:
                gaps[last_ns] += 1
            elif last_ns:
                gaps[last_ns] = 1
            else:
                record.first_token_ns = now_ns
                self.prompt_tokens += record.prompt_tokens
            record.last_token_ns = now_ns
            record.state = "decoding"
        self.output_tokens += len(records)
        for last_ns, count in gaps.items():
            for observe in self.on_gap:
                observe(now_ns - last_ns, count)

    def noted(self, event: Event) -> None:
        """An event of the engine. Its `finished` is left out: the daemon knows the reason, and when the
        last token left."""
        record = self._live.get(event.seq) if event.seq is not None else None
        match event.kind:
            case "finished":
                if record is not None:
                    record.is_placed = False
                return
            case "refused":
                self.refused[REFUSED.of(event)["code"]] += 1
            case "worker_died":
                self.worker_deaths[WORKER_DIED.of(event)["lane"]] += 1
            case "split_changed":
                self.last_split_change = event
            case "slo_changed":
                for observe in self.on_slo_changed:
                    observe(event)
            case _ if record is not None:
                self._advance(record, event)
        self._write(record, event.at_ns, Told(event.kind, event.data), event.request_id)

    def sent(self, record: RequestRecord, num_tokens: int, *, has_text: bool) -> None:
        """Tokens have left. While their text is withheld they are only counted: the time is that of the text.
        An answer without any token leaves as if it had one."""
        record.sent_tokens += num_tokens
        if not has_text:
            return
        now_ns = self._clock_ns()
        if record.sent_tokens > record.gaps.num_tokens:
            record.gaps.add(now_ns - record.last_sent_ns, record.sent_tokens)
        record.last_sent_ns = now_ns
        if not record.first_sent_ns:
            record.first_sent_ns = now_ns
            self._write(record, now_ns, FIRST_BYTE({"ttft_ms": record.ttft_ms}))
            for observe in self.on_first_sent:
                observe(record)

    def finished(self, record: RequestRecord, reason: FinishReason, error_code: str | None) -> None:
        """The end of a request, as its client saw it."""
        del self._live[record.seq]
        record.finished_ns = self._clock_ns()
        record.state = "finished"
        record.is_placed = False
        record.expected_start_ns = 0
        record.finish_reason = reason
        record.error_code = error_code
        end: RequestFinished = {
            "reason": reason,
            "output_tokens": record.sent_tokens,
            "tpot_ms": record.tpot_ms,
        }
        if error_code is not None:
            end["code"] = error_code
        self._write(record, record.finished_ns, FINISHED(end))
        self._recent.append(record)
        for observe in self.on_finished:
            observe(record)

    def abandoned(self, seq: SeqId, error_code: str) -> None:
        """Its admission has failed, perhaps before it had a record."""
        record = self._live.get(seq)
        if record is not None:
            self.finished(record, "error", error_code)

    def answered_with_error(
        self, code: str, request_id: str, arrival_ns: int, service_class: str = DEFAULT_CLASS
    ) -> None:
        """A refusal, unless the request has been handed to the engine: then it has a record that says so."""
        if any(record.arrival_ns == arrival_ns for record in self.named(request_id)):
            return
        self.refused[code] += 1
        self._write(None, self._clock_ns(), REFUSED({"code": code}), request_id)
        for observe in self.on_refused:
            observe(code, service_class)

    def engine_died(self, why: str, in_flight: Sequence[RequestRecord]) -> None:
        self.engine_deaths += 1
        for record in in_flight:
            record.state = "waiting"
            record.is_placed = record.in_background = False
            record.expected_start_ns = 0
        self._write(None, self._clock_ns(), ENGINE_DIED({"why": why, "in_flight": len(in_flight)}))

    def engine_restarted(self, outage_s: float, device: str) -> None:
        self._write(None, self._clock_ns(), ENGINE_RESTARTED({"outage_s": outage_s, "device": device}))

    def resumed(self, record: RequestRecord, output_tokens: int) -> None:
        """It has been submitted to another engine than before."""
        self.resumptions += 1
        self._write(record, self._clock_ns(), REQUEST_RESUMED({"output_tokens": output_tokens}))

    def drain_changed(self, data: DrainChanged) -> None:
        self._write(None, self._clock_ns(), DRAIN_CHANGED(data))

    def close(self) -> None:
        self.journal.close()

    def records(
        self, state: str | None = None, limit: int = MAX_RECENT, caller: Caller = OPERATOR
    ) -> list[RequestRecord]:
        """The caller's: live requests, then finished ones, each newest first. `state`: one of STATES; None:
        all."""
        chosen = (r for r in self._newest_first() if caller.owns(r.owner) and _matches(r, state))
        return [record for record, _ in zip(chosen, range(limit), strict=False)]

    def named(self, request_id: str, caller: Caller = OPERATOR) -> list[RequestRecord]:
        """The caller's records with this public id: a request of several choices has several sequences."""
        return [r for r in self._newest_first() if r.request_id == request_id and caller.owns(r.owner)]

    def blocks_of(self, record: RequestRecord) -> int:
        """KV blocks it holds, shared ones included: computed from its tokens. The engine may have one more
        or one less, and blocks that a step in flight still reads stay taken until that has settled."""
        return blocks_for(record.tokens, self.block_size) if record.is_placed and self.block_size else 0

    def holders(self, limit: int = MAX_HOLDERS) -> list[RequestRecord]:
        """Live requests with KV blocks, those with the most first."""
        placed = [record for record in self._live.values() if record.is_placed]
        return nlargest(limit, placed, key=attrgetter("tokens"))

    def to_wire(self, record: RequestRecord, *, timeline: bool = False) -> RequestRow:
        shown: RequestRow = {
            "id": record.request_id,
            "key": record.owner or None,
            "seq": record.seq,
            "state": record.state,
            "finish_reason": record.finish_reason,
            "error_code": record.error_code,
            "arrived_at_s": self.journal.wall_s(record.arrival_ns),
            "age_ms": record.total_ms(self._clock_ns()),
            "in_background": record.in_background,
            "expected_start_s": self._expected_s(record),
            "priority": record.priority,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "max_tokens": record.max_tokens,
            "blocks": self.blocks_of(record),
            "preemptions": record.preemptions,
            "queue_ms": record.queue_ms,
            "prefill_ms": record.prefill_ms,
            "ttft_ms": record.ttft_ms,
            "tpot_ms": record.tpot_ms,
            "itl_ms": record.gaps.percentile_ms(self.itl_percentile),
            "service_class": record.service.service_class,
            "targets": record.service.targets.to_wire(),
            "accept_late": record.service.accept_late,
        }
        if timeline:
            shown["events"] = [self.journal.to_wire(entry) for entry in record.timeline]
        return shown

    def _expected_s(self, record: RequestRecord) -> float | None:
        return self.journal.wall_s(record.expected_start_ns) if record.expected_start_ns else None

    def all_to_wire(self, records: Iterable[RequestRecord]) -> list[RequestRow]:
        return [self.to_wire(record) for record in records]

    def _newest_first(self) -> Iterator[RequestRecord]:
        yield from reversed(self._live.values())
        yield from reversed(self._recent)

    def _advance(self, record: RequestRecord, event: Event) -> None:
        match event.kind:
            case "admitted":
                record.state = "prefilling"
                record.is_placed = True
                record.expected_start_ns = 0
                if not record.admitted_ns:
                    self._first_admission(record, event)
            case "to_background":
                record.in_background = True
                expected_ms = TO_BACKGROUND.of(event)["expected_start_ms"]
                record.expected_start_ns = 0 if expected_ms is None else event.at_ns + int(expected_ms * 1e6)
            case "from_background":
                record.in_background, record.expected_start_ns = False, 0
            case "preempted":
                record.state = "waiting"
                record.is_placed = False
                record.preemptions += 1
                self.preemptions += 1

    def expected(self, starts_ns: Iterable[tuple[SeqId, int]]) -> None:
        """When requests that wait in the background will be begun, as the engine predicts."""
        for seq, at_ns in starts_ns:
            record = self._live.get(seq)
            if record is not None and record.in_background and record.state == "waiting":
                record.expected_start_ns = at_ns

    def _first_admission(self, record: RequestRecord, event: Event) -> None:
        record.admitted_ns = event.at_ns
        record.cached_tokens = ADMITTED.of(event)["cached_tokens"]
        self.prefix_queries_tokens += record.prompt_tokens
        self.prefix_hits_tokens += record.cached_tokens
        for observe in self.on_placed:
            observe(record)

    def _write(self, record: RequestRecord | None, at_ns: int, told: Told, request_id: str = "") -> None:
        request_id = record.request_id if record is not None else request_id
        entry = self.journal.add(at_ns, told, request_id)
        if record is not None and len(record.timeline) < MAX_TIMELINE:
            record.timeline.append(entry)
        facts = {"request_id": request_id} if request_id else {}
        log.debug("%s", told.kind, extra={**facts, "data": told.data})


def _matches(record: RequestRecord, state: str | None) -> bool:
    return state is None or record.state == state or (state == "live" and record.state != "finished")
