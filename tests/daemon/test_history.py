"""Records, journal, service levels and histograms against definitions and slow oracles."""

import asyncio
import bisect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram
from support.events import told
from support.history import MS, Told

from semipd.core.percentile import percentile
from semipd.daemon.history import records as history_module
from semipd.daemon.history.journal import Journal
from semipd.daemon.history.metric_names import DEFINITIONS
from semipd.daemon.history.metrics import Histogram
from semipd.daemon.history.record import RequestRecord, timing_to_wire


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
    told.history.on_refused.append(lambda code, service_class: refused.append(code))
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
