"""Records, journal, service levels and histograms against definitions and slow oracles."""

import asyncio
import bisect
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram
from support.events import told
from support.seeds import each_seed

from semipd.core.events import Event, EventKind
from semipd.core.percentile import percentile
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.slo import Slo
from semipd.daemon.history import records as history_module
from semipd.daemon.history import slo
from semipd.daemon.history.journal import Journal
from semipd.daemon.history.metric_names import DEFINITIONS
from semipd.daemon.history.metrics import Histogram, Metrics
from semipd.daemon.history.record import RequestRecord, timing_to_wire
from semipd.daemon.history.records import RequestHistory
from semipd.daemon.history.slo import SloWindow
from semipd.system import clock

MS = 1_000_000


@dataclass
class Clock:
    now_ns: int = 1000 * MS

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, ms: float) -> None:
        self.now_ns += int(ms * MS)


class Told:
    """A history and the clock it runs on."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = RequestHistory(clock.Clock(self.clock))
        self.metrics = Metrics(self.history)
        self._last_seq = 0

    def arrive(self, request_id: str = "r", prompt_tokens: int = 5, max_tokens: int = 9) -> RequestRecord:
        self._last_seq += 1
        params = SamplingParams(max_tokens=max_tokens, seed=1)
        prompt = [1] * prompt_tokens
        request = Request(SeqId(self._last_seq), request_id, prompt, params, self.clock.now_ns)
        return self.history.arrived(request)

    def engine(self, record: RequestRecord, kind: EventKind, **data: Any) -> None:
        self.history.noted(Event(self.clock.now_ns, kind, record.seq, record.request_id, data))

    def step(self, *records: RequestRecord) -> None:
        self.history.stepped(records, self.clock.now_ns)

    def send(self, record: RequestRecord, num_tokens: int, text: bool = True) -> None:
        self.history.sent(record, num_tokens, has_text=text)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.history.journal.read(0, 10_000).entries]


def test_a_life_and_its_times() -> None:
    told = Told()
    record = told.arrive("life")
    assert state(record) == "waiting"
    assert (record.ttft_ms, record.tpot_ms, record.queue_ms) == (None, None, None)
    told.clock.advance(10)
    told.engine(record, "queued", prompt_tokens=5)
    told.engine(record, "admitted", cached_tokens=3, tokens=5)
    assert state(record) == "prefilling"
    told.clock.advance(20)
    told.engine(record, "first_token")
    told.step(record)
    assert state(record) == "decoding"
    told.clock.advance(3)
    told.send(record, 1)
    for _ in range(4):
        told.clock.advance(7)
        told.step(record)
        told.send(record, 1)
    told.history.finished(record, "length", None)

    assert (record.queue_ms, record.prefill_ms) == (10, 20)
    assert record.ttft_ms == 33, "from arrival to the first token leaving, not to its computation"
    assert record.tpot_ms == 7, "(last - first) / (tokens - 1)"
    assert record.total_ms(0) == 61
    assert record.cached_tokens == 3
    assert told.kinds() == ["arrived", "queued", "admitted", "first_token", "first_byte", "finished"]
    wire = told.history.to_wire(record, timeline=True)
    assert [event["kind"] for event in wire["events"]] == told.kinds()
    assert (wire["state"], wire["finish_reason"], wire["output_tokens"]) == ("finished", "length", 5)


def test_one_token_has_no_tpot_and_withheld_text_has_not_left() -> None:
    told = Told()
    record = told.arrive()
    told.clock.advance(5)
    told.step(record)
    told.send(record, 1, text=False)
    assert record.ttft_ms is None
    told.clock.advance(5)
    told.send(record, 0)
    assert record.ttft_ms == 10
    assert record.tpot_ms is None


def test_an_answer_without_tokens_leaves_as_if_it_had_one() -> None:
    told = Told()
    record = told.arrive()
    told.clock.advance(4)
    told.send(record, 0)
    told.history.finished(record, "length", None)
    assert (record.ttft_ms, record.tpot_ms) == (4, None)


def test_preemptions_and_prefix_hits_count_once_per_edge() -> None:
    told = Told()
    record = told.arrive(prompt_tokens=32)
    told.engine(record, "admitted", cached_tokens=16, tokens=32)
    told.clock.advance(5)
    told.step(record)
    told.engine(record, "preempted", tokens_lost=32, blocks=2)
    assert state(record) == "waiting"
    told.clock.advance(5)
    told.engine(record, "admitted", cached_tokens=32, tokens=33)
    told.step(record)
    history = told.history
    assert state(record) == "decoding"
    assert (record.preemptions, history.preemptions) == (1, 1)
    assert record.cached_tokens == 16, "of the first admission"
    assert (history.prefix_queries_tokens, history.prefix_hits_tokens) == (32, 16)
    assert (history.prompt_tokens, history.output_tokens) == (32, 2)
    assert record.prefill_ms == 5


def test_gaps_are_told_once_per_step_and_distance() -> None:
    told = Told()
    gaps: list[tuple[int, int]] = []
    told.history.on_gap.append(lambda gap_ns, count: gaps.append((gap_ns // MS, count)))
    first, second, late = told.arrive(), told.arrive(), told.arrive()
    told.step(first, second)
    assert gaps == []
    told.clock.advance(4)
    told.step(first, second, late)
    assert gaps == [(4, 2)]
    told.clock.advance(3)
    told.step(first)
    told.clock.advance(2)
    told.step(first, second, late)
    assert gaps[1:] == [(3, 1), (2, 1), (5, 2)]


def test_listing_filters_orders_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_RECENT", 4)
    told = Told()
    done = [told.arrive(f"done-{idx}") for idx in range(6)]
    for record in done:
        told.history.finished(record, "stop", None)
    waiting, decoding = told.arrive("waiting"), told.arrive("decoding")
    told.step(decoding)
    names = [record.request_id for record in told.history.records()]
    assert names == ["decoding", "waiting", "done-5", "done-4", "done-3", "done-2"]
    assert told.history.records("live") == [decoding, waiting]
    assert told.history.records("waiting") == [waiting]
    assert told.history.records("finished", limit=1) == [done[5]]
    assert told.history.named("done-0") == []
    assert told.history.named("waiting") == [waiting]


def test_refusals_are_not_counted_for_requests_that_have_a_record() -> None:
    told = Told()
    refused: list[str] = []
    told.history.on_refused.append(refused.append)
    record = told.arrive("known")
    told.history.answered_with_error("engine_crashed", "known", record.arrival_ns)
    assert refused == []
    told.history.answered_with_error("overloaded", "known", record.arrival_ns + 1)
    told.history.answered_with_error("overloaded", "other", 0)
    assert refused == ["overloaded", "overloaded"]
    assert told.history.refused == {"overloaded": 2}
    assert told.kinds() == ["arrived", "refused", "refused"]


def test_timing_of_several_choices() -> None:
    told = Told()
    slow, fast = told.arrive(), told.arrive()
    for record, wait_ms in ((fast, 2), (slow, 10)):
        told.engine(record, "admitted", cached_tokens=1, tokens=5)
        told.clock.advance(wait_ms)
        told.step(record)
        told.send(record, 1)
    told.engine(slow, "preempted", tokens_lost=1, blocks=1)
    told.clock.advance(6)
    told.send(slow, 2)
    timing = timing_to_wire([slow, fast], told.clock.now_ns)
    assert (timing["ttft_ms"], timing["tpot_ms"], timing["total_ms"]) == (2, 3, 18)
    assert (timing["preemptions"], timing["cached_tokens"]) == (1, 2)
    unsent = told.arrive()
    told.clock.advance(9)
    assert timing_to_wire([unsent], told.clock.now_ns)["ttft_ms"] == 9


def test_a_record_does_not_grow_for_ever() -> None:
    told = Told()
    record = told.arrive()
    for _ in range(history_module.MAX_TIMELINE * 2):
        told.engine(record, "preempted", tokens_lost=1, blocks=1)
    assert len(record.timeline) == history_module.MAX_TIMELINE


@given(
    st.integers(1, 20),
    st.lists(st.text("xyz", max_size=12), max_size=30),
    st.integers(1, 9),
    st.sampled_from([None, frozenset("x"), frozenset("yz")]),
)
def test_ring_and_cursors_like_a_list(
    capacity: int, bursts: list[str], limit: int, kinds: frozenset[str] | None
) -> None:
    journal = Journal(capacity)
    everything: list[tuple[int, str]] = []
    cursor, seen, lost, passed_over = 0, list[int](), 0, 0
    for burst in bursts:
        for kind in burst:
            everything.append((journal.add(0, told(kind)).number, kind))
        read = journal.read(cursor, limit, kinds)
        kept = everything[-capacity:]
        unread = [(number, kind) for number, kind in kept if number > cursor]
        expected = [number for number, kind in unread if kinds is None or kind in kinds][:limit]
        assert [entry.number for entry in read.entries] == expected
        assert read.lost == sum(1 for entry in everything if entry[0] > cursor and entry not in kept)
        passed_over += sum(1 for number, _ in unread if number <= read.cursor) - len(expected)
        lost += read.lost
        seen += expected
        cursor = read.cursor
    assert len(seen) + passed_over + lost + (journal.last - cursor) == len(everything)
    assert passed_over == 0 or kinds is not None


def test_cursors_of_another_life_begin_anew() -> None:
    journal = Journal()
    for _ in range(3):
        journal.add(0, told("x"))
    assert journal.cursor(f"{journal.epoch}-2") == 2
    assert journal.cursor(f"{journal.epoch}-4") == 0
    assert journal.cursor(f"{journal.epoch - 9}-2") == 0
    for garbage in ("", "2", "a-b", f"{journal.epoch}-", f"{journal.epoch}--1", "²-1"):
        assert journal.cursor(garbage) is None


async def test_readers_wake_for_news_and_for_the_end() -> None:
    journal = Journal()
    readers = [asyncio.create_task(journal.changed(0)) for _ in range(3)]
    cancelled = asyncio.create_task(journal.changed(0))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    journal.add(0, told("x"))
    await asyncio.wait_for(asyncio.gather(*readers), 10)
    waiting = asyncio.create_task(journal.changed(journal.last))
    await asyncio.sleep(0)
    assert not waiting.done()
    journal.close()
    await asyncio.wait_for(waiting, 10)


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(1, 100))
def test_percentile_is_the_nearest_rank(values: list[float], pct: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, pct)
    assert found in ordered
    assert found is not None
    not_exceeding = bisect.bisect_right(ordered, found)
    assert not_exceeding * 100 >= pct * len(ordered) * (1 - 1e-12)
    below = bisect.bisect_left(ordered, found)
    assert below * 100 < pct * len(ordered) * (1 + 1e-12)


def state(record: RequestRecord) -> str:
    """It changes with what the history is told, though nothing here assigns it."""
    return record.state


def judged(told: Told, ttft_ms: float, tpot_ms: float | None) -> RequestRecord:
    record = told.arrive()
    told.clock.advance(ttft_ms)
    told.send(record, 1)
    if tpot_ms is not None:
        told.clock.advance(tpot_ms)
        told.send(record, 1)
    return record


@each_seed(range(20))
def test_attainment_and_goodput_like_the_definitions(seed: int) -> None:
    rng = random.Random(seed)
    told = Told()
    window = SloWindow(Slo(100, 10, 90, 5), lambda code: code == "bad", told.clock)
    told.history.on_finished.append(window.finished)
    told.history.on_refused.append(window.refused)
    began_ns = told.clock.now_ns
    outcomes: list[tuple[int, bool]] = []
    ttfts: list[tuple[int, float]] = []
    for _ in range(rng.randrange(60)):
        told.clock.advance(rng.choice([0, 30, 400]))
        kind = rng.choice(["served", "served", "cancelled", "error", "bad", "refused", "bad request"])
        if kind in ("refused", "bad request"):
            told.history.answered_with_error("bad" if kind == "bad request" else "overloaded", "x", 0)
            if kind == "refused":
                outcomes.append((told.clock.now_ns, False))
            continue
        ttft_ms, tpot_ms = rng.choice([50, 100, 101]), rng.choice([None, 5, 10, 11])
        record = judged(told, ttft_ms, tpot_ms)
        codes = {"error": "engine_crashed", "bad": "bad"}
        reason = "error" if kind in codes else "cancelled" if kind == "cancelled" else "stop"
        told.history.finished(record, reason, codes.get(kind))  # type: ignore[arg-type]
        if kind == "served":
            met = ttft_ms <= 100 and (tpot_ms is None or tpot_ms <= 10)
            outcomes.append((told.clock.now_ns, met))
            ttfts.append((told.clock.now_ns, ttft_ms))
        elif kind == "error":
            outcomes.append((told.clock.now_ns, False))
    now_ns = told.clock.now_ns
    recent = [met for at_ns, met in outcomes if at_ns >= now_ns - 5e9]
    seconds = min(5.0, max((now_ns - began_ns) / 1e9, 1.0))
    seen = window.snapshot()
    assert seen["requests"] == len(recent)
    assert seen["attainment"] == (sum(recent) / len(recent) if recent else None)
    assert seen["goodput_rps"] == pytest.approx(sum(recent) / seconds)
    recent_ttfts = sorted(ttft for at_ns, ttft in ttfts if at_ns >= now_ns - 5e9)
    assert seen["ttft_ms"]["p50"] == percentile(recent_ttfts, 50)
    assert (window.num_judged, window.num_met) == (len(outcomes), sum(met for _, met in outcomes))


@each_seed(range(10))
def test_new_targets_judge_the_window_as_if_they_had_always_held(seed: int) -> None:
    rng = random.Random(seed)
    told = Told()
    first, second = Slo(100, 10, 90, 5), Slo(rng.choice([50, 200]), 7, 90, 3)
    changed = SloWindow(first, lambda code: code == "bad", told.clock)
    always = SloWindow(second, lambda code: code == "bad", told.clock)
    for window in (changed, always):
        told.history.on_finished.append(window.finished)
        told.history.on_refused.append(window.refused)
    for _ in range(rng.randrange(60)):
        told.clock.advance(rng.choice([0, 30, 400]))
        if rng.random() < 0.2:
            told.history.answered_with_error("overloaded", "x", 0)
            continue
        record = judged(told, rng.choice([50, 100, 150, 250]), rng.choice([None, 5, 10, 11]))
        told.history.finished(record, "stop", None)
    counted = (changed.num_judged, changed.num_met)
    changed.retarget(second)
    assert changed.snapshot() == always.snapshot()
    assert (changed.num_judged, changed.num_met) == counted, "counters never go back"


@each_seed(range(20))
def test_a_full_window_covers_the_latest_outcomes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slo, "MAX_OUTCOMES", 8)
    rng, told = random.Random(seed), Told()
    window = SloWindow(Slo(100, 10, 90, 1000), lambda code: False, told.clock)
    ttfts: list[float | None] = []
    for _ in range(rng.randrange(8, 40)):
        told.clock.advance(rng.choice([0, 30, 400]))
        if rng.random() < 0.2:
            window.refused("overloaded")
            ttfts.append(None)
            continue
        ttft_ms = rng.choice([50.0, 100.0, 150.0])
        ttfts.append(ttft_ms)
        record = judged(told, ttft_ms, 5)
        told.history.finished(record, "stop", None)
        window.finished(record)
    latest = ttfts[-8:]
    seen = window.snapshot()
    assert seen["requests"] == 8
    assert seen["attainment"] == sum(ttft is not None and ttft <= 100 for ttft in latest) / 8
    assert seen["ttft_ms"]["p90"] == percentile(sorted(ttft for ttft in latest if ttft is not None), 90)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=40))
@settings(deadline=None)
def test_histogram_like_prometheus_own(observations: list[tuple[float, int]]) -> None:
    bounds = DEFINITIONS["vllm:inter_token_latency_seconds"].buckets
    ours = Histogram(bounds)
    registry = CollectorRegistry()
    theirs = TheirHistogram("x", "x", buckets=bounds, registry=registry)
    for value, count in observations:
        ours.observe(value, count)
        for _ in range(count):
            theirs.observe(value)
    for bound, at_most in ours.buckets():
        assert registry.get_sample_value("x_bucket", {"le": bound}) == at_most
    assert ours.sum == pytest.approx(registry.get_sample_value("x_sum"))
