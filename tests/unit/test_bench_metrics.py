"""Figures of a load run, against definitions written out the slow way."""

import math
import random
from itertools import pairwise
from typing import get_args

import pytest
from benchlib.load.records import Outcome, Record
from benchlib.metrics import Slo, distribution_ms, quantile, summarize
from hypothesis import given
from hypothesis import strategies as st
from support.seeds import each_seed

SLO = Slo(ttft_ms=100.0, tpot_ms=10.0)


def record(
    ttft_ms: float | None = 50.0,
    tokens: int = 5,
    tpot_ms: float = 5.0,
    outcome: Outcome = "ok",
    **fields: int,
) -> Record:
    """Sent at 1 s; one event per token at even distances."""
    made = Record(0, 8, fields.get("asked", tokens), sent_s=1.0)
    if ttft_ms is not None:
        made.event_times_s = [1.0 + (ttft_ms + i * tpot_ms) / 1e3 for i in range(tokens)]
    made.take_usage({"prompt_tokens": 8, "completion_tokens": tokens})
    made.close(outcome, 2.0, "" if outcome in ("ok", "cancelled") else f"code_{outcome}")
    return made


def slow_quantile(values: list[float], frac: float) -> float:
    """The height at `frac` of the straight lines through (i / (n - 1), i-th smallest value)."""
    ordered = sorted(values)
    points = [(i / max(1, len(ordered) - 1), value) for i, value in enumerate(ordered)]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= frac <= x1:
            return y0 + (y1 - y0) * (frac - x0) / (x1 - x0)
    return ordered[-1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantile(values: list[float], frac: float) -> None:
    assert quantile(sorted(values), frac) == pytest.approx(slow_quantile(values, frac), abs=1e-3)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
def test_distribution(values: list[float]) -> None:
    found = distribution_ms([None, *values, None])
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(1e3 * math.fsum(values) / len(values))
    assert found.max == 1e3 * max(values)
    expected = [slow_quantile([1e3 * value for value in values], frac) for frac in (0.5, 0.9, 0.99)]
    assert [found.p50, found.p90, found.p99] == pytest.approx(expected, abs=1e-6)


def test_distribution_of_nothing() -> None:
    assert distribution_ms([None]) is None


def test_latencies_of_one_request() -> None:
    made = record(ttft_ms=50, tokens=5, tpot_ms=5)
    assert made.ttft_s == pytest.approx(0.050)
    assert made.tpot_s == pytest.approx(0.005)
    assert made.e2e_s == pytest.approx(0.070)
    assert made.itl_s == pytest.approx([0.005] * 4)


def test_tpot_counts_tokens_not_events() -> None:
    made = Record(0, 8, 9, sent_s=0.0, event_times_s=[1.0, 1.8])
    made.take_usage({"prompt_tokens": 8, "completion_tokens": 9})
    assert made.tpot_s == pytest.approx(0.1)
    assert made.itl_s == pytest.approx([0.8])


def test_without_usage_the_events_are_counted() -> None:
    made = Record(0, 8, 3, event_times_s=[1.0, 2.0])
    made.close("ok", 2.0)
    assert made.output_tokens == 2
    assert summarize([made], 1.0, SLO).without_usage == 1


@pytest.mark.parametrize(
    ("made", "meets"),
    [
        (record(ttft_ms=100, tpot_ms=10), True),
        (record(ttft_ms=100.1), False),
        (record(tpot_ms=10.1), False),
        (record(tokens=1), True),
        (record(tokens=1, ttft_ms=101), False),
        (record(ttft_ms=None, tokens=0), False),
        *((record(outcome=outcome), outcome == "ok") for outcome in get_args(Outcome)),
    ],
)
def test_meeting_the_slo(made: Record, meets: bool) -> None:
    # the limits themselves are met: a thousandth of a microsecond is the arithmetic's
    assert Slo(SLO.ttft_ms + 1e-6, SLO.tpot_ms + 1e-6).met_by(made) is meets


def test_cancelled_requests_did_not_arrive() -> None:
    summary = summarize([record(), record(outcome="cancelled"), record(outcome="refused")], 2.0, SLO)
    assert (summary.sent, summary.arrived) == (3, 2)
    assert summary.attainment_frac == 0.5
    assert summary.goodput_rps == 0.5
    assert summary.errors == {"code_refused": 1}


def test_nothing_arrived() -> None:
    summary = summarize([record(outcome="cancelled")], 1.0, SLO)
    assert summary.attainment_frac is None
    assert summary.goodput_rps == 0
    assert summary.ttft_ms is None


@each_seed(range(30))
def test_summary_against_counting_by_hand(seed: int) -> None:
    rng = random.Random(seed)
    records = [
        record(
            ttft_ms=rng.choice([None, rng.uniform(0, 200)]),
            tokens=rng.randint(1, 6),
            tpot_ms=rng.uniform(0, 20),
            outcome=rng.choice(get_args(Outcome)),
            asked=rng.randint(1, 6),
        )
        for _ in range(rng.randint(1, 60))
    ]
    duration_s = rng.uniform(0.5, 20)
    summary = summarize(records, duration_s, SLO)

    arrived = met = tokens = short = 0
    for made in records:
        times = [1e3 * (time_s - 1.0) for time_s in made.event_times_s]
        arrived += made.outcome != "cancelled"
        tokens += made.output_tokens if made.outcome == "ok" else 0
        short += made.outcome == "ok" and made.output_tokens != made.asked_output_tokens
        if made.outcome != "ok" or not times or times[0] > SLO.ttft_ms:
            continue
        tokens_after_first = made.output_tokens - 1
        met += tokens_after_first == 0 or (times[-1] - times[0]) / tokens_after_first <= SLO.tpot_ms
    assert summary.arrived == arrived
    assert summary.short == short
    assert summary.attainment_frac == (met / arrived if arrived else None)
    assert summary.goodput_rps == pytest.approx(met / duration_s)
    assert summary.output_tokens_per_s == pytest.approx(tokens / duration_s)
    assert sum(summary.outcomes.values()) == summary.sent == len(records)


def test_lag_is_of_every_request_with_a_time() -> None:
    late = Record(0, 1, 1, due_s=0.5, sent_s=0.75, end_s=1.0, outcome="failed", code="x")
    free = Record(1, 1, 1, sent_s=9.0, end_s=9.5, outcome="ok")
    lag = summarize([late, free], 1.0, SLO).send_lag_ms
    assert lag is not None
    assert lag.count == 1
    assert lag.max == pytest.approx(250)
