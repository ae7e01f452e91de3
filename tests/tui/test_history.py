"""Samples: what a frame says beside the one before."""

import pytest
from semipd_top.picture.history import NO_USE, LaneUse, Sample, sample_of
from support.top_state import later, state, state_without_engine


def test_a_frame_alone_has_no_rates() -> None:
    sample = sample_of(state(), None)
    assert sample.prefill is sample.decode is NO_USE
    assert sample.split == (68, 64)
    assert sample.used_kv_frac == 0.3
    assert sample.waiting == 4
    assert sample.prompt_tokens_per_s == 5120.0
    assert sample.ttft_ms == {"p50": 120.0, "p90": 380.0, "p99": 640.0}


def test_without_an_engine_only_the_time_is_known() -> None:
    alone = state_without_engine()
    assert sample_of(alone, state()) == Sample(at_s=alone["at_s"])
    assert sample_of(alone, None).way == "unknown"


def test_rates_are_differences_over_the_time_between() -> None:
    before = state()
    after = later(before, 0.5, {"lanes.decode.steps": 1020, "lanes.decode.busy_ms": 40_400.0})
    sample = sample_of(after, before)
    assert sample.decode == LaneUse(busy_frac=0.8, step_ms=20.0, steps_per_s=40.0)
    assert sample.prefill == LaneUse(busy_frac=0.4, step_ms=20.0, steps_per_s=20.0)


def test_a_lane_that_stood_still_has_no_step_time() -> None:
    before = state()
    sample = sample_of(later(before, 1.0, steps=0), before)
    assert sample.decode == LaneUse(busy_frac=0.0, step_ms=None, steps_per_s=0.0)
    assert sample.way == "idle"


def test_a_lane_is_never_busier_than_always() -> None:
    before = state()
    assert sample_of(later(before, 0.1), before).decode.busy_frac == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"lanes.decode.steps": 3, "lanes.decode.busy_ms": 1.0},
        {"engine.restarts": 1},
        {"uptime_s": 1.0},
        {"at_s": state()["at_s"]},
        {"at_s": state()["at_s"] - 60},
    ],
    ids=["counters going back", "another engine", "another daemon", "no time", "a clock set back"],
)
def test_what_does_not_follow_the_frame_before_has_no_rates(changes: dict[str, object]) -> None:
    before = state()
    sample = sample_of(later(before, 0.5, changes), before)
    assert sample.prefill is sample.decode is NO_USE
    assert sample.way == "split", "from the steps in flight"


def test_after_a_time_without_an_engine_there_are_no_rates() -> None:
    assert sample_of(state(), state_without_engine()).decode is NO_USE


STEPS = "partition.prediction.steps."


@pytest.mark.parametrize(
    ("ran", "way"),
    [
        ({"prefill": 1, "decode": 4}, "split"),
        ({"prefill": 1}, "prefill only"),
        ({"decode": 4}, "decode only"),
        ({"merged": 2, "decode": 1}, "merged"),
        ({}, "idle"),
    ],
)
def test_ways_are_told_by_the_steps_between_two_frames(ran: dict[str, int], way: str) -> None:
    before = state()
    seen = before["partition"]["prediction"]["steps"]
    after = later(
        before, 0.5, {f"{STEPS}{name}.steps": seen[name]["steps"] + n for name, n in ran.items()}, 0
    )
    assert sample_of(after, before).way == way


@pytest.mark.parametrize(
    ("lanes", "way"), [(("prefill", "decode"), "split"), (("decode",), "decode only"), ((), "idle")]
)
def test_steps_that_no_model_has_counted_still_tell_the_way(lanes: tuple[str, ...], way: str) -> None:
    """A step that ran under two splits teaches the models nothing."""
    before = state()
    after = later(before, 0.5, {f"lanes.{name}.steps": 1001 for name in lanes}, 0)
    assert sample_of(after, before).way == way


@pytest.mark.parametrize(
    ("prefill", "decode", "way"),
    [(1, 1, "split"), (0, 2, "decode only"), (1, 0, "prefill only"), (0, 0, "idle")],
)
def test_the_first_frame_tells_the_way_by_what_is_in_flight(prefill: int, decode: int, way: str) -> None:
    first = state({"lanes.prefill.steps_in_flight": prefill, "lanes.decode.steps_in_flight": decode})
    assert sample_of(first, None).way == way


def test_merged_steps_carry_their_size() -> None:
    assert sample_of(state({"partition.shared.merged_tokens": 512}), None).merged_tokens == 512
