"""The monitor: which link a picture has, what it keeps, what it counts."""

from typing import Any, cast

import pytest
from semipd_top.picture import picture as module
from semipd_top.picture.picture import STALE_AFTER_S, Monitor
from support.top_source import gone
from support.top_state import NOW_S, event, later, request, seen, state, state_without_engine


def told(*items: Any, interval_s: float = 0.5) -> Monitor:
    monitor = Monitor(interval_s)
    for item in items:
        monitor.take(item)
    return monitor


def test_before_the_first_item_it_is_connecting() -> None:
    picture = told().picture(NOW_S)
    assert (picture.link, picture.state, picture.age_s) == ("connecting", None, None)


def test_a_frame_makes_it_live_until_it_is_old() -> None:
    monitor = told(seen(state()))
    assert monitor.picture(NOW_S + STALE_AFTER_S).link == "live"
    assert monitor.picture(NOW_S + STALE_AFTER_S + 0.1).link == "stale"
    assert monitor.picture(NOW_S + 7.5).age_s == 7.5


def test_slow_intervals_are_old_later() -> None:
    monitor = told(seen(state()), interval_s=10.0)
    assert monitor.picture(NOW_S + 30).link == "live"
    assert monitor.picture(NOW_S + 30.1).link == "stale"


def test_a_clock_that_was_set_back_makes_no_negative_age() -> None:
    assert told(seen(state())).picture(NOW_S - 100).age_s == 0.0


def test_lost_connections_keep_the_state_and_come_back() -> None:
    monitor = told(seen(state()), gone())
    picture = monitor.picture(NOW_S + 60)
    assert picture.link == "disconnected", "rather than stale"
    assert picture.state is not None
    monitor.take(seen(later(state(), 61)))
    again = monitor.picture(NOW_S + 61)
    assert (again.link, again.gone) == ("live", None)


def test_without_a_next_try_it_has_ended() -> None:
    assert told(gone(retry_s=None)).picture(NOW_S).link == "ended"
    assert told(seen(state()), gone(retry_s=None)).picture(NOW_S).link == "ended"


def test_a_picture_does_not_change_afterwards() -> None:
    monitor = told(seen(state(), [request(1)], [event("preempted")]))
    first = monitor.picture(NOW_S)
    monitor.take(seen(later(state(), 1), [request(2)], [event("refused")], lost=2))
    assert (len(first.samples), len(first.events), len(first.notable), first.lost) == (1, 1, 1, 0)
    assert [row["seq"] for row in first.requests] == [1]
    assert [row["seq"] for row in monitor.picture(NOW_S).requests] == [2]


def test_requests_that_were_not_asked_for_still_count() -> None:
    monitor = told(seen(state(), [request(1)]), seen(later(state(), 1)))
    assert [row["seq"] for row in monitor.picture(NOW_S).requests] == [1]
    monitor.take(seen(later(state(), 2), []))
    assert monitor.picture(NOW_S).requests == ()


def test_lost_events_add_up() -> None:
    monitor = told(seen(state(), lost=3), seen(later(state(), 1)), seen(later(state(), 2), lost=4))
    assert monitor.picture(NOW_S).lost == 7


def test_rings_are_bounded_and_keep_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MAX_SAMPLES", 5), ("MAX_EVENTS", 8), ("MAX_NOTABLE", 3)):
        monkeypatch.setattr(module, name, limit)
    monitor, current = Monitor(0.5), state()
    for _ in range(20):
        current = later(current, 1)
        monitor.take(seen(current, events=[event("arrived"), event("refused", at_s=current["at_s"])]))
    picture = monitor.picture(NOW_S)
    assert [sample.at_s - NOW_S for sample in picture.samples] == [16, 17, 18, 19, 20]
    assert [one["kind"] for one in picture.events] == ["arrived", "refused"] * 4
    assert [one["at_s"] - NOW_S for one in picture.notable] == [18, 19, 20]


def test_news_are_kept_apart_from_what_every_request_brings() -> None:
    events = [event(kind) for kind in ("arrived", "queued", "preempted", "finished")]
    picture = told(seen(state(), events=events)).picture(NOW_S)
    assert [one["kind"] for one in picture.notable] == ["preempted"]
    assert list(picture.events) == events


def test_a_new_decision_is_an_event_of_its_own() -> None:
    moved = later(state(), 1, {"partition.shared.split": [72, 60]})
    picture = told(seen(state()), seen(moved), seen(later(moved, 2))).picture(NOW_S)
    assert [(one["kind"], cast(Any, one["data"])["split"]) for one in picture.notable] == [
        ("decided", [72, 60])
    ]


def test_samples_compare_with_the_frame_before() -> None:
    picture = told(seen(state()), seen(later(state(), 0.5)), seen(state_without_engine())).picture(NOW_S)
    assert [sample.decode.steps_per_s for sample in picture.samples] == [None, 20.0, None]
