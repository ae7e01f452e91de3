"""Replays with seeds, sessions, and the stated distributions of the generated workloads."""

import itertools
import json
import statistics
from pathlib import Path

import pytest

from semipd.core.slo import Targets
from semipd.sim.workloads.classes import ServiceClass, class_of
from semipd.sim.workloads.generated import BLOCK_TOKENS, SYSTEM_TOKENS, agents, reasoning
from semipd.sim.workloads.traces import RUN_ROWS, Arrival, Row, Trace, read_trace, replay

BURSTS = Trace(
    "bursts",
    tuple(
        Row(burst * 60.0 + place * 0.1, 10 + burst, place + 1) for burst in range(300) for place in range(10)
    ),
)


def test_seeds_replay_runs_of_the_trace_with_its_bursts() -> None:
    arrivals = list(replay(BURSTS, 5.0, 1000.0, seed=3))
    assert arrivals == list(replay(BURSTS, 5.0, 1000.0, seed=3))
    assert arrivals != list(replay(BURSTS, 5.0, 1000.0, seed=4))
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    runs = [list(run) for _, run in itertools.groupby(arrivals, key=lambda arrival: arrival.lap)]
    assert [len(run) for run in runs[:-1]] == [RUN_ROWS] * (len(runs) - 1)
    places = {row: place for place, row in enumerate(BURSTS.rows)}
    stretch = BURSTS.recorded_rate / 5.0
    for before, after in itertools.pairwise(runs[0]):
        first, second = places[before.row], places[after.row]
        assert second == (first + 1) % len(BURSTS.rows)
        if second:
            gap_s = BURSTS.rows[second].at_s - BURSTS.rows[first].at_s
            assert (after.at_ns - before.at_ns) / 1e9 == pytest.approx(gap_s * stretch, abs=1e-6)


def test_a_run_of_a_short_trace_has_each_row_once() -> None:
    """A row that came twice within one lap would find its whole prompt as a prefix."""
    short = Trace("short", BURSTS.rows[:70])
    for _, run in itertools.groupby(replay(short, 5.0, 100.0, seed=2), key=lambda arrival: arrival.lap):
        rows = [arrival.row for arrival in run]
        assert len(rows) == len(set(rows))


def test_seed_0_is_the_trace_as_recorded() -> None:
    arrivals = list(replay(BURSTS, 5.0, 1000.0, seed=0))
    assert [arrival.row for arrival in arrivals[:3000]] == list(BURSTS.rows)
    assert {arrival.lap for arrival in arrivals} == {0, 1}


def test_sessions_keep_their_own_times_at_every_rate() -> None:
    rows = [Row(turn * 7.0, 100 * turn + 1, session + 1) for session in range(40) for turn in range(5)]
    trace = Trace("s", tuple(rows), 0, timed=False, session_starts=tuple(range(0, 200, 5)))
    for rate in (2.0, 20.0):
        arrivals = list(replay(trace, rate, 3000 / rate, seed=1))
        assert len(arrivals) == pytest.approx(3000, rel=0.15)
        times = [arrival.at_ns for arrival in arrivals]
        assert times == sorted(times)
        assert times[0] > 0
        sessions: dict[tuple[int, int], list[int]] = {}
        for arrival in arrivals:
            sessions.setdefault((arrival.lap, arrival.row.output_tokens), []).append(arrival.at_ns)
        whole = [own for own in sessions.values() if len(own) == 5]
        assert len(whole) > 100
        assert all(b - a == pytest.approx(7e9, abs=2) for own in whole for a, b in itertools.pairwise(own))
    longest_s = 28.0
    beginning = sum(at < longest_s * 1e9 for at in times)
    assert beginning == pytest.approx(20.0 * longest_s, rel=0.25), "the beginning is emptier than the rest"


def test_agents_send_everything_so_far() -> None:
    trace = agents(1)
    assert trace == agents(1) != agents(2)
    ends = (*trace.session_starts[1:], len(trace.rows))
    sessions = [trace.rows[start:end] for start, end in zip(trace.session_starts, ends, strict=True)]
    assert statistics.mean(map(len, sessions)) == pytest.approx(10.0, rel=0.15)
    parents: dict[int, int] = {}
    for session in sessions:
        assert session[0].at_s == 0.0
        for before, after in itertools.pairwise(session):
            grown = after.prompt_tokens - before.prompt_tokens - before.output_tokens
            assert 32 <= grown <= 8_000
            assert after.blocks[: len(before.blocks)] == before.blocks
        for row in session:
            assert len(row.blocks) == row.prompt_tokens // BLOCK_TOKENS
            assert row.prompt_tokens + row.output_tokens <= 64_000
            for parent, block in itertools.pairwise((-1, *row.blocks)):
                assert parents.setdefault(block, parent) == parent, "two ways to a block"
    firsts = {session[0].blocks[: SYSTEM_TOKENS // BLOCK_TOKENS] for session in sessions}
    assert len(firsts) == 8
    assert len({session[0].blocks for session in sessions}) > 1400
    assert statistics.median(row.output_tokens for row in trace.rows) == pytest.approx(150, rel=0.05)
    gaps = [b.at_s - a.at_s for session in sessions for a, b in itertools.pairwise(session)]
    assert statistics.mean(gaps) == pytest.approx(10.0, rel=0.05)


def test_classes_by_share_and_by_name() -> None:
    classes = (
        ServiceClass("a", Targets(1.0), 0.7),
        ServiceClass("b", Targets(2.0), 0.3),
        ServiceClass("c", Targets()),
    )
    row = Row(0.0, 1, 1)
    drawn = [class_of(classes, Arrival(0, idx, 0, row), seed=1).name for idx in range(2000)]
    assert drawn == [class_of(classes, Arrival(9, idx, 3, row), seed=1).name for idx in range(2000)]
    assert drawn.count("a") == pytest.approx(1400, rel=0.05)
    assert drawn.count("c") == 0
    named = Arrival(0, 0, 0, Row(0.0, 1, 1, service_class="c"))
    assert class_of(classes, named, seed=1).name == "c"


def test_reasoning_thinks_for_8000_tokens() -> None:
    trace = reasoning(1)
    assert trace == reasoning(1) != reasoning(2)
    assert statistics.mean(row.output_tokens for row in trace.rows) == pytest.approx(8_000, rel=0.03)
    assert statistics.median(row.prompt_tokens for row in trace.rows) == pytest.approx(250, rel=0.05)
    assert max(row.output_tokens for row in trace.rows) <= 32_000


def test_long_prompts_are_the_long_ones_of_the_recording(tmp_path: Path) -> None:
    lengths = [10, 16_000, 120_000, 120_001, 50_000]
    lines = [
        json.dumps({"timestamp": at * 3000, "input_length": length, "output_length": 5, "hash_ids": [at]})
        for at, length in enumerate(lengths)
    ]
    path = tmp_path / "moon.jsonl"
    path.write_text("\n".join(lines))
    rows = read_trace(path, "mooncake-long").rows
    assert [(row.at_s, row.prompt_tokens) for row in rows] == [(3.0, 16_000), (6.0, 120_000), (12.0, 50_000)]
