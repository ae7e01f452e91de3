"""Events in words."""

import pytest
from semipd_top.picture.event_text import (
    COMMON,
    Decided,
    DecisionWatch,
    describe,
    event_line,
    is_notable,
    style_of,
)
from semipd_top.text.lines import plain
from support.top_state import EVENTS, event, later, state, state_without_engine

from semipd.core.state.daemon import StateDocument

WORDS = {
    "arrived": "1.0k prompt tokens, at most 400 of output",
    "queued": "1.0k prompt tokens",
    "admitted": "256 of 1.0k tokens found as a prefix",
    "to_background": "would be late, to be begun in 4200 ms",
    "from_background": "can be in time after all",
    "first_token": "the engine's first token",
    "first_byte": "left the daemon, TTFT 244 ms",
    "preempted": "gave up 40 blocks, 640 tokens to compute again",
    "finished": "stop after 100 tokens, TPOT 42.0 ms",
    "refused": "overloaded",
    "split_changed": "0+132 to 68+64 in 0.2 ms, predictive: 64 SMs keep TPOT",
    "partition_changed": "fixed 72+60 for 10 min, by ann (pid 4121): long prompts",
    "engine_died": "The engine was killed by SIGKILL. (7 requests in flight)",
    "engine_restarted": "after 3.2 s, on NVIDIA H100",
    "request_resumed": "goes on after 55 tokens",
    "slow_step": ("decode step 4711 took 130 ms, predicted 20.0 ms: 0 prompt tokens, 9 streams on 64 units"),
    "drain_changed": "draining within 60 s, 3 awaited, by ann (pid 4121): new weights",
    "slo_changed": "TTFT 300 ms, TPOT 50 ms at p90 over 60 s, by ann (pid 4121): evening peak",
    "worker_died": "the decode lane's worker, pid 77: it was killed by SIGKILL",
    "worker_restarted": "the decode lane's worker, after 0.8 s, pid 78",
}


def test_every_documented_kind_has_words() -> None:
    assert {kind: describe(event(kind)) for kind in EVENTS} == WORDS


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("finished", {"tpot_ms": None}, "stop after 100 tokens"),
        ("finished", {"reason": "error", "code": "engine_failed"}, "error (engine_failed) after 100 tokens"),
        ("refused", {"message": "the queue is full"}, "overloaded: the queue is full"),
        ("partition_changed", {"mode": "off", "granted": [], "expires_s": 0.0}, "off, by ann"),
        ("partition_changed", {"reason": ""}, "fixed 72+60 for 10 min, by ann (pid 4121)"),
        ("drain_changed", {"limit_s": None, "state": "serving"}, "serving, 3 awaited, by ann"),
        ("to_background", {"reason": "no_target", "expected_start_ms": None}, "has no target"),
        (
            "slo_changed",
            {"service_class": "chat", "itl_ms": 40.0, "tpot_ms": 0.0},
            "chat: TTFT 300 ms, ITL 40 ms, by ann",
        ),
        ("worker_died", {"signal": "", "how": "exit code 3"}, "worker, pid 77: exit code 3"),
    ],
)
def test_what_is_missing_is_not_spoken_of(kind: str, changes: dict[str, object], words: str) -> None:
    assert words in describe(event(kind, EVENTS[kind] | changes))


def test_a_kind_of_a_later_release_shows_its_data() -> None:
    unknown = event("moon_rose", {"phase": "full", "lux": 0.25})
    assert describe(unknown) == "phase=full lux=0.25"
    assert is_notable(unknown)
    assert style_of("moon_rose") == ""


def test_what_every_request_brings_is_no_news() -> None:
    assert {kind for kind in EVENTS if not is_notable(event(kind))} == COMMON


def test_a_line_has_time_kind_words_and_the_request() -> None:
    shown = event_line(event("first_byte", request_id="0123456789abcdef"), lambda _: "12:00:00")
    assert plain(shown) == f"12:00:00 first byte        {WORDS['first_byte']}  01234567"
    assert plain(event_line(event("slow_step"), lambda _: "")).endswith("64 units")


def test_deaths_look_bad_and_returns_look_well() -> None:
    assert {style_of("engine_died"), style_of("worker_died")} == {"bad"}
    assert {style_of("engine_restarted"), style_of("worker_restarted")} == {"ok"}
    assert style_of("arrived") == ""


def told(*states: StateDocument) -> list[Decided]:
    watch = DecisionWatch()
    return [event for event in map(watch.see, states) if event is not None]


def test_a_decision_is_another_split_or_another_way_that_holds() -> None:
    first = state()
    split, merged = {"partition.shared.split": [72, 60]}, {"partition.shared.merged_tokens": 512}
    found = told(
        first,
        *(later(first, 1 + idx / 2, split) for idx in range(10)),
        later(first, 6, merged),
        later(first, 8, merged),
    )
    assert [(event["kind"], event["at_s"] - first["at_s"]) for event in found] == [
        ("decided", 3),
        ("decided", 8),
    ]
    assert found[0]["data"]["split"] == [72, 60]
    assert describe(found[0]).startswith("split 72+60, predictive: 64 SMs")
    assert describe(found[1]).startswith("merged steps, predictive")
    assert style_of("decided") == "title"


def test_what_does_not_hold_is_not_told() -> None:
    first = state()
    other = {"partition.shared.split": [72, 60]}
    flapping = [later(first, idx, other if idx % 2 else {}) for idx in range(1, 20)]
    assert told(first, *flapping) == []


def test_sizes_of_merged_steps_and_new_reasons_are_no_decisions() -> None:
    before = state({"partition.shared.merged_tokens": 512})
    change = {"partition.shared.merged_tokens": 2048, "partition.shared.reason": "more"}
    assert told(before, later(before, 1, change), later(before, 9, change)) == []


def test_without_an_engine_nobody_decides_and_operators_have_an_event_of_their_own() -> None:
    first = state()
    fixed = {"partition.mode": "fixed", "partition.shared.split": [72, 60]}
    assert told(first, state_without_engine(), later(first, 9, fixed), later(first, 19, fixed)) == []
