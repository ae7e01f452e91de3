"""Trace readers on excerpts, the replay at a chosen rate, prompts that honour prefixes, and the figures."""

import itertools
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd.core.errors import SemipdError
from semipd.core.percentile import percentile
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.slo import Targets
from semipd.sim.outcomes import Outcome, figures, percentiles
from semipd.sim.search import Bracket, RateGrid, best_of, bracket
from semipd.sim.workloads.prompts import prompt_of, request_of
from semipd.sim.workloads.traces import Arrival, Row, Trace, read_trace, replay

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:16:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 1300, "output_length": 500, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1400, "output_length": 5, "hash_ids": [0, 1, 3]},
    {"timestamp": 3000, "input_length": 40, "output_length": 9, "hash_ids": [4]},
]
SHAREGPT = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
74,918,992,0.08
2497,0,2497,0
1402,711,2113,1.97
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure_rows_in_order_of_time(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, AZURE), "azure")
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [
        (374, 44),
        (879, 55),
        (396, 109),
    ]
    first, second, third = (row.at_s for row in trace.rows)
    assert second - first == pytest.approx(4.541877, abs=1e-6)
    assert third - first == pytest.approx(64.314579, abs=1e-6)
    assert trace.recorded_rate == pytest.approx(2 / 64.314579)


def test_mooncake_blocks_and_their_size(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "\n".join(map(json.dumps, MOONCAKE))), "mooncake-raw")
    assert trace.block_tokens == 512
    assert trace.rows[1] == Row(3.0, 1400, 5, (0, 1, 3))


def test_mooncake_ticks_are_spread_until_the_next_one(tmp_path: Path) -> None:
    rows = [(0, 1), (0, 2), (3000, 3), (3000, 4), (3000, 5), (6000, 6), (6000, 7)]
    lines = [
        json.dumps({"timestamp": at, "input_length": 9, "output_length": tokens, "hash_ids": [tokens]})
        for at, tokens in rows
    ]
    path = written(tmp_path, "\n".join(lines))
    times = [(row.at_s, row.output_tokens) for row in read_trace(path, "mooncake").rows]
    assert times == [(0, 1), (1.5, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7.5, 7)]
    assert [row.at_s for row in read_trace(path, "mooncake-raw").rows] == [at / 1e3 for at, _ in rows]


def test_sharegpt_has_lengths_only_and_skips_what_asks_for_nothing(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, SHAREGPT), "sharegpt")
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [(74, 918), (1402, 711)]
    assert not trace.timed
    assert trace.recorded_rate == 0.0


@pytest.mark.parametrize("form", ["azure", "mooncake", "sharegpt"])
def test_a_wrong_file_is_refused(tmp_path: Path, form: str) -> None:
    for text in ("", "what,is,this\n1,2,3\n", '{"timestamp": 1}\n'):
        with pytest.raises(SemipdError) as refused:
            read_trace(written(tmp_path, text), form)
        assert refused.value.code == "invalid_trace"
    with pytest.raises(SemipdError) as refused:
        read_trace(tmp_path / "nothing", form)
    assert refused.value.code == "trace_not_found"


TIMED = Trace("t", tuple(Row(at_s, 10, 1) for at_s in (100.0, 101.0, 103.0, 104.0)))
UNTIMED = Trace("u", tuple(Row(0.0, tokens, 1) for tokens in range(1, 50)), timed=False)


def test_a_timed_trace_is_stretched_and_begins_again() -> None:
    arrivals = list(replay(TIMED, 1.5, 6.0))
    half = [0, 0.5, 1.5, 2.0]
    assert [arrival.at_ns / 1e9 for arrival in arrivals] == pytest.approx(
        [*half, *(4 / 1.5 + at for at in half), 8 / 1.5, 8 / 1.5 + 0.5]
    )
    assert [arrival.lap for arrival in arrivals] == [0] * 4 + [1] * 4 + [2] * 2
    assert [arrival.idx for arrival in arrivals] == list(range(10))


@given(rate=st.floats(0.5, 50), seed=st.integers(0, 1000))
def test_poisson_arrivals_have_the_rate_and_repeat_with_the_seed(rate: float, seed: int) -> None:
    arrivals = list(replay(UNTIMED, rate, 400 / rate, seed))
    assert abs(len(arrivals) - 400) < 6 * math.sqrt(400)
    assert arrivals == list(replay(UNTIMED, rate, 400 / rate, seed))
    assert arrivals != list(replay(UNTIMED, rate, 400 / rate, seed + 1))


def shared_prefix(left: list[int], right: list[int]) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )


def test_prompts_share_exactly_the_blocks_of_their_rows() -> None:
    rows = [
        Row(0, 1300, 1, (0, 1, 2)),
        Row(0, 1400, 1, (0, 1, 3)),
        Row(0, 600, 1, (4, 1)),
        Row(0, 1100, 1, (0, 1)),
    ]
    trace = Trace("m", tuple(rows), 512)
    prompts = [prompt_of(trace, Arrival(0, idx, 0, row), 128_256) for idx, row in enumerate(rows)]
    assert [len(prompt) for prompt in prompts] == [1300, 1400, 600, 1100]
    assert 1024 <= shared_prefix(prompts[0], prompts[1]) < 1024 + 16
    assert shared_prefix(prompts[0], prompts[2]) < 16
    assert prompts[3][:1024] == prompts[0][:1024]
    next_lap = prompt_of(trace, Arrival(0, 9, 1, rows[0]), 128_256)
    assert shared_prefix(prompts[0], next_lap) < 16


def test_prompts_without_blocks_share_nothing() -> None:
    trace = Trace("a", (Row(0, 100, 7),))
    numbers = [0, 1, 99, 100, 9_999, 10_000, 10_001, 123_456]
    prompts = [prompt_of(trace, Arrival(0, idx, 0, trace.rows[0]), 100) for idx in numbers]
    assert all(len(prompt) == 100 and max(prompt) < 100 for prompt in prompts)
    for left, right in itertools.combinations(prompts, 2):
        assert left[:16] != right[:16]
    request = request_of(trace, Arrival(5, 3, 0, trace.rows[0]), 100)
    assert (request.arrival_ns, request.params.max_tokens, request.params.stop_token_ids) == (5, 7, ())


MS = 1_000_000


def test_figures_of_a_worked_example() -> None:
    """Ten requests in 5 s: one refused, one whose first token is late, one whose tokens are slow."""
    slo = Targets(500, tpot_ms=25)
    good = [Outcome(0, 100 * MS, 1100 * MS, 101, targets=slo) for _ in range(6)]
    single = Outcome(0, 90 * MS, 90 * MS, 1, targets=slo)
    late = Outcome(0, 600 * MS, 700 * MS, 11, missed=True, targets=slo)
    slow = Outcome(0, 100 * MS, 4100 * MS, 101, missed=True, targets=slo)
    refused = Outcome(0, 0, 1, 0, failed=True, missed=True, targets=slo)
    found = figures([*good, single, late, slow, refused], 5.0, complete=True)
    assert found.attainment == pytest.approx(0.7)
    assert found.goodput_per_s == pytest.approx(7 / 5)
    assert found.num_failed == 1
    assert found.mean_e2e_ms == pytest.approx((6 * 1100 + 90 + 700 + 4100) / 9)
    assert found.tpot_ms["mean"] == pytest.approx((6 * 10 + 10 + 40) / 8)
    assert found.ttft_ms["p99"] == 600
    assert list(found.half_attainments) == pytest.approx([0.7, 1.0])
    assert found.output_tokens == 6 * 101 + 1 + 11 + 101
    assert all(outcome.met != outcome.missed for outcome in [*good, single, late, slow, refused])


@pytest.mark.parametrize("seed", range(50))
def test_two_counts_judge_inter_token_times_as_their_percentile_does(seed: int) -> None:
    """The oracle keeps every inter-token time; tokens that come together have none between them."""
    rng = random.Random(seed)
    pct = rng.choice([1, 50, 90, 95, 99, 99.9, 100])
    outcome = Outcome(0, targets=Targets(itl_ms=20), itl_percentile=pct)
    outcome.first_token(5 * MS)
    now_ns, gaps_ms = 5 * MS, list[float]()
    for _ in range(rng.choice([0, 1, 2, 10, 99, 100, 101, 400])):
        gaps_ms.append(rng.choices([0, 10, 20, 21, 90], [1, 80, 10, rng.random() * 4, 1])[0])
        now_ns += int(gaps_ms[-1] * MS)
        outcome.next_tokens([now_ns])
    outcome.finished_ns = now_ns
    found = percentile(sorted(gaps_ms), pct)
    assert outcome.met == (found is None or found <= 20), f"{pct} % of {sorted(gaps_ms)} is {found}"


def test_each_outcome_is_judged_by_its_own_targets() -> None:
    """The target for the first token grows with what had to be computed, once that is known."""
    grows = Targets(100, ttft_ms_per_1k_tokens=200)
    request = Request(SeqId(1), "1", [1] * 1000, SamplingParams(max_tokens=9, seed=1), 0, targets=grows)
    outcome = Outcome.of(request)
    outcome.first_token(250 * MS)
    outcome.finished_ns = 260 * MS
    assert (outcome.met, outcome.is_late) == (True, False)
    outcome.cached_tokens = 500
    assert (outcome.met, outcome.is_late) == (False, True)
    assert Outcome(0, 900 * MS, 10**12, 2).met


def test_percentiles_are_nearest_rank() -> None:
    assert percentiles(range(1, 101)) == {
        "mean": 50.5,
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }
    assert percentiles([7.0])["p99"] == 7.0
    assert percentiles([]) == {}


@given(limits=st.lists(st.integers(-1, 300), min_size=1, max_size=5), start=st.integers(0, 300))
def test_search_finds_the_best_member_exactly_and_bounds_the_others(limits: list[int], start: int) -> None:
    """A world in which member i passes up to grid point limits[i]."""
    grid = RateGrid(0.02)
    tried = []

    def passes(policy: str, rate: float) -> bool:
        tried.append((policy, rate))
        return rate <= grid.rate(limits[int(policy)])

    found = best_of([str(idx) for idx in range(len(limits))], passes, grid, start, coarse=8)
    for idx, limit in enumerate(limits):
        assert found[str(idx)].low <= limit < found[str(idx)].high
        assert found[str(idx)].width <= 8
    best = max(limits)
    assert max(b.low for b in found.values()) == best
    assert all(b.high <= best + 1 for b in found.values())
    assert len(tried) == len(set(tried)), "a rate was tried twice"
    alone = bracket("0", lambda _, rate: rate <= grid.rate(limits[0]), grid, start, 1)
    assert alone == Bracket(limits[0], limits[0] + 1)


def test_grid() -> None:
    grid = RateGrid(0.01)
    assert grid.rate(-1) == 0.0
    assert grid.rate(1) / grid.rate(0) == pytest.approx(1.01)
    assert grid.rate(grid.at(5.0)) <= 5.0 < grid.rate(grid.at(5.0) + 1)
    assert grid.at(0.0001) == 0
