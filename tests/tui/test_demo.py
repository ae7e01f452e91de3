"""The demo is a daemon's real parts over a made-up day: equal seeds, equal days; its numbers agree."""

from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from semipd_top.picture.picture import Monitor
from semipd_top.sources.contract import Seen
from semipd_top.sources.demo import DemoSource
from support.by_kind import by_kind

BEGAN_S = 1_790_000_000.0
DAY_S = 420
TOLERANCE_MS = 1e-3
LONGEST_STEP_MS = 2000


def demo(seed: int = 7) -> DemoSource:
    return DemoSource(0.5, seed, paced=False, began_s=BEGAN_S)


def watched(seconds: float, step_s: float = 1.0, seed: int = 7) -> list[Seen]:
    source = demo(seed)
    return [source.advance(step_s) for _ in range(int(seconds / step_s))]


@pytest.fixture(scope="module")
def first_day() -> list[Seen]:
    return watched(DAY_S)


def test_a_slow_step_is_told_as_documented(first_day: list[Seen]) -> None:
    docs = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    [documented] = [line for line in docs.splitlines() if line.startswith("| `slow_step` |")]
    [event] = by_kind([e for seen in first_day for e in seen.frame.events])["slow_step"]
    names = documented.partition("at least 20 ms:")[2].partition(".")[0]
    assert set(event["data"]) == set(names.replace("`", "").replace(" ", "").split(","))
    assert event["data"]["busy_ms"] > 4 * event["data"]["predicted_ms"]


def test_equal_seeds_give_equal_frames_and_others_do_not() -> None:
    seen = watched(72, 0.5)
    assert seen == watched(72, 0.5)
    assert seen != watched(72, 0.5, seed=8)


def test_frames_do_not_depend_on_how_often_somebody_looks(first_day: list[Seen]) -> None:
    source = demo()
    for _ in range(100):
        source.advance(0.25)
    for _ in range(20):
        source.advance(3.0)
    last = source.advance(5.0).frame.state
    assert last == first_day[89].frame.state


def test_numbers_agree_all_day(first_day: list[Seen]) -> None:
    check_numbers(first_day)


@pytest.mark.soak
def test_numbers_agree_for_an_hour() -> None:
    check_numbers(watched(3600))


def check_numbers(day: list[Seen]) -> None:
    before: Any = None
    finished: dict[int, Any] = {}
    events: list[Any] = []
    for seen in day:
        state = seen.frame.state
        assert seen.requests is not None
        events += seen.frame.events
        check_requests(state, seen.requests)
        for row in seen.requests:
            check_row(row)
            if row["state"] == "finished":
                assert finished.setdefault(row["seq"], row) == row
        if state["kv"] is not None:
            check_engine(state)
            check_counters(state, before)
        before = state if state["kv"] is not None else None
    check_events(events, finished)
    assert before is not None
    assert sum(before["refused"].values()) == len(by_kind(events)["refused"])


def check_requests(state: Any, rows: Any) -> None:
    requests = state["requests"]
    totals = dict(requests["totals"])
    live = [row for row in rows if row["state"] != "finished"]
    assert totals.pop("admitted", 0) == requests["live"] + sum(totals.values())
    assert len(live) == requests["live"] == state["drain"]["awaited"]
    if state["kv"] is None:
        assert requests["held"] == requests["live"]
        assert not sum(row["blocks"] for row in live)
    else:
        there = {name: sum(row["state"] == name for row in live) for name in ("prefilling", "decoding")}
        assert there == {name: requests[name] for name in there}
        # one that was preempted waits from the moment on when the step that still reads its blocks has ended
        assert 0 <= len(live) - sum(there.values()) - requests["waiting"] - requests["held"] <= 2


def check_engine(state: Any) -> None:
    kv, partition, device = state["kv"], state["partition"], state["device"]
    assert kv["used_blocks"] + kv["free_blocks"] == kv["total_blocks"]
    assert 0 <= kv["cached_blocks"] <= kv["free_blocks"]
    held = [holder["tokens"] for holder in kv["holders"]]
    assert held == sorted(held, reverse=True)
    assert sum(partition["shared"]["split"]) == sum(partition["effective"]) == 132
    assert [state["split"]["prefill"], state["split"]["decode"]] == partition["effective"]
    assert sum(device["memory"].values()) == device["stats"]["gpu"]["memory_used_bytes"]


def check_counters(state: Any, before: Any) -> None:
    """A step counts when it has ended."""
    if before is None:
        return
    for name, lane in state["lanes"].items():
        then = before["lanes"][name]
        for count in ("steps", "slow_steps", "prefill_tokens", "decode_tokens", "busy_ms"):
            assert lane[count] >= then[count]
        assert lane["busy_ms"] - then["busy_ms"] <= 1000 + LONGEST_STEP_MS
    assert state["preemptions"] >= before["preemptions"]


def check_row(row: Any) -> None:
    tokens = row["prompt_tokens"] + row["output_tokens"]
    placed = row["state"] in ("prefilling", "decoding")
    assert row["blocks"] == (-(-tokens // 16) if placed else 0)
    assert row["output_tokens"] <= row["max_tokens"]
    assert row["cached_tokens"] < row["prompt_tokens"]
    if row["ttft_ms"] is not None:
        assert row["ttft_ms"] == pytest.approx(row["queue_ms"] + row["prefill_ms"])
        assert min(row["queue_ms"], row["prefill_ms"]) >= 0
    if row["tpot_ms"] is not None and row["error_code"] is None:
        end_ms = row["ttft_ms"] + row["tpot_ms"] * (row["output_tokens"] - 1)
        assert row["tpot_ms"] > 0
        # of one that was cancelled, the client may have read less
        if row["finish_reason"] in ("stop", "length"):
            assert end_ms <= row["age_ms"] + TOLERANCE_MS
    assert (row["finish_reason"] is None) == (row["state"] != "finished")


def check_events(events: list[Any], finished: dict[int, Any]) -> None:
    assert [int(event["id"].split("-")[1]) for event in events] == list(range(1, len(events) + 1))
    assert all(one["at_s"] <= two["at_s"] for one, two in pairwise(events))
    told: dict[str, list[Any]] = {}
    for event in events:
        if event["request_id"] is not None:
            told.setdefault(event["request_id"], []).append(event)
    assert len(finished) > 400
    for row in finished.values():
        kinds = by_kind(told[row["id"]])
        [arrived], [end] = kinds["arrived"], kinds["finished"]
        assert arrived["at_s"] == row["arrived_at_s"]
        assert (end["at_s"] - arrived["at_s"]) * 1e3 == pytest.approx(row["age_ms"], abs=0.01)
        if row["finish_reason"] in ("stop", "length"):
            assert end["data"]["output_tokens"] == row["output_tokens"]
        assert end["data"]["tpot_ms"] == row["tpot_ms"]
        assert len(kinds.get("preempted", ())) == row["preemptions"]
        assert [one["data"]["ttft_ms"] for one in kinds.get("first_byte", ())] == [
            ms for ms in [row["ttft_ms"]] if ms is not None
        ]


def test_the_first_day_has_everything_worth_seeing(first_day: list[Seen]) -> None:
    monitor = Monitor(1.0)
    for seen in first_day:
        monitor.take(seen)
    picture = monitor.picture(first_day[-1].at_s)
    states = [seen.frame.state for seen in first_day]
    assert {sample.way for sample in picture.samples} >= {"split", "merged", "decode only", "idle"}
    assert {state["state"] for state in states} == {"starting", "ready", "restarting"}
    assert {state["drain"]["state"] for state in states} >= {"serving", "draining"}
    assert {state["engine"]["attempt"] for state in states} == {None, 1, 2}
    assert {state["partition"]["mode"] for state in states if state["partition"]} == {"auto", "fixed"}
    assert len({tuple(s["partition"]["shared"]["split"]) for s in states if s["partition"]}) >= 4
    assert max(sample.used_kv_frac or 0 for sample in picture.samples) > 0.95
    attained = [sample.attainment_frac for sample in picture.samples if sample.attainment_frac is not None]
    assert min(attained) < 0.5 < 0.99 < max(attained)
    assert set(states[-1]["refused"]) >= {"overloaded", "draining"}
    assert set(states[-1]["requests"]["totals"]) == {"admitted", "stop", "length", "cancelled", "error"}
    codes = {row["error_code"] for seen in first_day for row in seen.requests or ()}
    assert codes == {None, "slow_reader", "late"}
    assert not all(state["lamps"]["progress"]["ok"] for state in states)


async def test_the_source_without_pacing_is_the_world() -> None:
    source = demo()
    async with aclosing(source.items()) as items:
        found = [await anext(items) for _ in range(100)]
    other = demo()
    assert found == [other.advance(0.0)] + [other.advance(0.5) for _ in range(99)]
    assert source.now_s() == found[-1].at_s
    assert source.operator is source.world.operator


async def test_the_paced_source_keeps_time() -> None:
    source = DemoSource(0.05, skip_s=60.0)
    async with aclosing(source.items()) as items:
        found = [await anext(items) for _ in range(5)]
        age_s = source.now_s() - found[-1].at_s
    assert found[-1].at_s - found[0].at_s == pytest.approx(0.2)
    assert isinstance(found[0], Seen)
    assert found[0].frame.state["uptime_s"] == pytest.approx(60.0)
    assert -0.01 <= age_s < 20
