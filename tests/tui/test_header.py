"""Every condition has its look and its words, and the first thing to know is said first."""

from typing import Any, get_args

import pytest
from semipd_top.panels.header import LOOKS, Condition, Frame, condition_of, header
from semipd_top.picture.picture import Monitor, Picture
from semipd_top.text.lines import plain, width_of
from support.top_source import gone
from support.top_state import NOW_S, seen, state, state_without_engine

TRYING = {"attempt": 2, "backoff_left_s": 4.2, "why": "It was killed.", "hint": "Look at the log."}
PHASE = {"name": "weights", "seconds": 12.34, "limit_s": 300.0}
DRAIN = {"awaited": 3, "oldest_ms": 9300.0, "seconds_left": 42.0, "actor": "ann", "reason": "new weights"}


def picture_of(*items: Any, age_s: float = 0.0) -> Picture:
    monitor = Monitor(0.5)
    for item in items:
        monitor.take(item)
    return monitor.picture(NOW_S + age_s)


def draining(name: str = "draining", **changes: Any) -> Picture:
    drain = state()["drain"] | DRAIN | {"state": name} | changes
    return picture_of(seen(state({"drain": drain})))


def engine(name: str, **changes: Any) -> Picture:
    report = state()["engine"] | {"state": name} | changes
    return picture_of(seen(state_without_engine({"state": name, "engine": report})))


CASES: dict[Condition, tuple[Picture, str]] = {
    "live": (picture_of(seen(state())), "tiny-llama  up 2.0 h"),
    "connecting": (picture_of(), "Connected, waiting for the first numbers."),
    "stale": (picture_of(seen(state()), age_s=7), "No news for 7.0 s: what you see is old."),
    "disconnected": (
        picture_of(seen(state()), gone(NOW_S + 8), age_s=5),
        "Next try in 3 s. The numbers are 5.0 s old. No daemon listens at /run/d.sock. Start one.",
    ),
    "ended": (picture_of(gone(None)), "No daemon listens at /run/d.sock. Start one."),
    "starting": (
        engine("starting", phase=PHASE),
        "The engine starts: weights for 12.3 of at most 300 s",
    ),
    "restarting": (
        engine("restarting", **TRYING),
        "The engine is being replaced, attempt 2 in 4 s. It was killed. Look at the log.",
    ),
    "failed": (
        engine("failed", why="It was killed.", hint="Look at the log."),
        "The engine is gone for good. It was killed. Look at the log.",
    ),
    "stopping": (engine("stopping"), "The daemon stops"),
    "draining": (
        draining(),
        "New requests are refused; 3 to finish (the oldest runs for 9.3 s), 42 s left, asked for by ann: "
        "new weights",
    ),
    "drained": (
        draining("drained", awaited=0),
        "Drained: new requests are refused, asked for by ann: new weights",
    ),
    "paused": (picture_of(seen(state())), "This picture stands still; p shows what happens now."),
}


def test_every_condition_has_a_case_and_a_look_of_its_own() -> None:
    assert set(CASES) == set(LOOKS) == set(get_args(Condition))
    assert len({word for word, _ in LOOKS.values()}) == len(LOOKS), "also without colours"


@pytest.mark.parametrize("condition", CASES)
def test_the_look_and_the_words(condition: Condition) -> None:
    picture, words = CASES[condition]
    paused = condition == "paused"
    assert condition_of(picture, paused) == condition
    first, second = header(picture, Frame(paused=paused), 160)
    assert LOOKS[condition][0] in plain(first)
    assert plain(second).strip() == words


@pytest.mark.parametrize("condition", CASES)
@pytest.mark.parametrize("width", [1, 2, 10, 40, 80, 99, 100, 250])
def test_two_lines_of_the_width(condition: Condition, width: int) -> None:
    frame = Frame("events", "a long title " * 9, condition == "paused", True, "recording 12 MB", 2.0)
    lines = header(CASES[condition][0], frame, width)
    assert [width_of(spans) for spans in lines] == [width, width]


def test_no_connection_comes_before_the_engines_trouble_before_a_drain_before_a_pause() -> None:
    trouble = seen(state_without_engine({"state": "restarting", "drain.state": "draining"}))
    assert condition_of(picture_of(trouble, gone()), True) == "disconnected"
    assert condition_of(picture_of(trouble, age_s=60), False) == "stale"
    assert condition_of(picture_of(trouble), True) == "restarting"
    assert condition_of(picture_of(seen(state({"drain.state": "draining"}))), True) == "draining"
    assert condition_of(picture_of(seen(state({"drain.state": "stopping"}))), False) == "draining"


def test_a_picture_that_was_paused_is_not_stale() -> None:
    assert condition_of(picture_of(seen(state()), age_s=60), True) == "paused"


def test_lamps_are_named_and_told_apart_without_colours() -> None:
    top = plain(header(picture_of(seen(state({"lamps.progress.ok": False}))), Frame(), 120)[0])
    assert "process ✔  loop ✔  progress ✘" in top


@pytest.mark.parametrize("condition", ["connecting", "disconnected", "stale"])
def test_an_old_picture_lights_no_lamp(condition: Condition) -> None:
    assert "process" not in plain(header(CASES[condition][0], Frame(), 120)[0])


def test_tabs_show_where_we_are_and_can_be_clicked() -> None:
    first, _ = header(CASES["live"][0], Frame("requests"), 120)
    assert "[2 requests]" in plain(first)
    assert [span.action for span in first if span.action] == [
        "app.view('overview')",
        "app.view('requests')",
        "app.view('events')",
    ]


def test_title_speed_recording_and_read_only_stand_at_the_right() -> None:
    _, second = header(CASES["live"][0], Frame("overview", "d.sock", False, True, "REC 3 items", 2.0), 120)
    assert plain(second).endswith("d.sock, 2x, REC 3 items, read-only ")


def test_only_a_roomy_header_has_the_time() -> None:
    shown = [plain(header(CASES["live"][0], Frame(), width)[0]).count(":") for width in (99, 100)]
    assert shown == [0, 2]


def test_a_drain_whose_facts_are_missing() -> None:
    picture = draining(awaited=0, oldest_ms=None, seconds_left=None, actor=None, reason=None)
    assert plain(header(picture, Frame(), 120)[1]).strip() == "New requests are refused; 0 to finish"
