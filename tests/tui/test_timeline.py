"""One request's life as lines."""

from typing import Any

import pytest
from semipd_top.panels.timeline import request_lines
from semipd_top.text.lines import Line, plain, width_of
from support.top_state import NOW_S, event, finished, request

from semipd.core.state.requests import RequestRow


def text(record: RequestRow, width: int = 80) -> list[str]:
    return [plain(spans) for spans in request_lines(record, width)]


def share(line: Line) -> dict[str, int]:
    return {mark: plain(line).count(mark) for mark in "·█▒"}


def test_facts() -> None:
    shown = "\n".join(text(request(1, key="evaluation", preemptions=2)))
    assert "req-0001  decoding" in shown
    assert "age 5.0 s, interactive, key evaluation" in shown
    assert "prompt 1.0k tokens, 256 cached, output 100 of at most 400" in shown
    assert "TTFT 244 ms, TPOT 42.0 ms, 70 KV blocks, 2 preemptions" in shown


def test_how_it_ended() -> None:
    assert text(finished(1))[0] == "req-0001  finished, stop"
    failed = finished(1, finish_reason="error", error_code="engine_failed")
    assert text(failed)[0] == "req-0001  finished, engine_failed"


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        ({"age_ms": 1000.0, "queue_ms": 200.0, "prefill_ms": 300.0}, {"·": 10, "█": 15, "▒": 25}),
        ({"age_ms": 1000.0, "queue_ms": 200.0, "prefill_ms": None}, {"·": 10, "█": 40, "▒": 0}),
        ({"age_ms": 1000.0, "queue_ms": None, "prefill_ms": None}, {"·": 50, "█": 0, "▒": 0}),
        ({"age_ms": 0.0, "queue_ms": None, "prefill_ms": None}, {"·": 50, "█": 0, "▒": 0}),
    ],
    ids=["decoding", "prefilling", "waiting", "just come"],
)
def test_where_its_time_went(changes: dict[str, Any], cells: dict[str, int]) -> None:
    bar = request_lines(request(1, **changes), 50)[5]
    assert share(bar) == cells
    assert width_of(bar) == 50


def test_times_that_exceed_the_age_do_not_exceed_the_line() -> None:
    """The daemon takes them at different moments."""
    bar = request_lines(request(1, age_ms=100.0, queue_ms=60.0, prefill_ms=60.0), 10)[5]
    assert width_of(bar) == 10


def test_events_tell_the_time_since_arrival_and_since_the_one_before() -> None:
    events = [
        event("arrived", at_s=NOW_S - 5),
        event("admitted", at_s=NOW_S - 4.875),
        event("moon_rose", {"phase": "full"}, at_s=NOW_S - 4),
    ]
    shown = text(request(1) | {"events": events})
    assert [" ".join(line.split()) for line in shown[8:]] == [
        "after ms + ms event",
        "0.0 0.0 arrived 1.0k prompt tokens, at most 400 of output",
        "125 125 admitted 256 of 1.0k tokens found as a prefix",
        "1000 875 moon rose phase=full",
    ]


def test_events_before_the_arrival_are_at_its_time() -> None:
    """Clocks are compared across processes."""
    shown = text(request(1) | {"events": [event("queued", at_s=NOW_S - 5.001)]})
    assert shown[-1].split()[:2] == ["0.0", "0.0"]


def test_a_record_without_events() -> None:
    record = request(1)
    assert plain(request_lines(record, 80)[-1]).strip() == "after ms     + ms  event"
