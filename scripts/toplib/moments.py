"""Moments of the demo worth a picture: how to get there, and which keys to press."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from semipd_top.sources.contract import Gone, Item, Seen
from semipd_top.sources.demo import DemoSource

from semipd.core.state.daemon import EngineState, StateDocument
from toplib.still import StillSource

BEGAN_S = 1_790_000_000.0
"""2026-09-21, at about a quarter past two in the afternoon, UTC."""

STEP_S = 0.5
WATCHED_S = 150.0
"""What a picture shows of the time before it."""

LIMIT_S = 7200.0


@dataclass(frozen=True)
class Moment:
    """The first time that `until` holds, and `later_s` more; then `turn` may change what has been seen. The
    clock stands `late_s` behind the last frame."""

    name: str
    until: Callable[[Any], bool] = lambda state: True
    later_s: float = 0.0
    turn: Callable[[list[Item]], list[Item]] = lambda items: items
    late_s: float = 0.1
    keys: Sequence[str] = ()


def busy(state: Any) -> bool:
    return bool(
        state["at_s"] > BEGAN_S + 100 and state["requests"]["decoding"] and state["slo"]["requests"] > 50
    )


def divided(state: Any) -> bool:
    lanes = state["lanes"] or {}
    both = bool(lanes) and all(lane["steps_in_flight"] for lane in lanes.values())
    return both and busy(state) and all(state["partition"]["effective"])


def overridden(state: Any) -> bool:
    return bool(state["partition"] and state["partition"]["mode"] == "fixed")


def _gone(code: str, message: str, hint: str, retry_in_s: float | None) -> Callable[[list[Item]], list[Item]]:
    def turn(items: list[Item]) -> list[Item]:
        at_s = items[-1].at_s + 4.0
        retry_s = None if retry_in_s is None else at_s + retry_in_s
        return [*items, Gone(at_s, code, message, hint, retry_s)]

    return turn


def _failed(items: list[Item]) -> list[Item]:
    """The demo's engine always comes back; this one does not."""
    last = items[-1]
    assert isinstance(last, Seen)
    engine: EngineState = {
        "state": "failed",
        "pid": None,
        "phase": None,
        "attempt": 5,
        "backoff_left_s": None,
        "restarts": 4,
        "why": "The engine died 5 times within 10 minutes, the last time by SIGKILL.",
        "hint": "Look for the OOM killer in the kernel's log, then start the daemon again.",
    }
    state: StateDocument = {**last.frame.state, "state": "failed", "engine": engine}
    return [*items[:-1], replace(last, frame=replace(last.frame, state=state))]


LOST = _gone(
    "daemon_not_running",
    "No daemon answers at /run/user/1000/semipd/daemon.sock (Connection refused).",
    "Start one with `semipd-daemon start`, or name its socket.",
    3.0,
)
OVER = _gone("recording_over", "The recording is over.", "", None)

MOMENTS: tuple[Moment, ...] = (
    Moment("overview", divided),
    Moment("override", divided, keys=("plus",)),
    Moment("overridden", overridden, later_s=3.0),
    Moment("slo", divided, keys=("s",)),
    Moment("help", divided, keys=("question_mark",)),
    Moment("requests", divided, keys=("2",)),
    Moment("requests-sorted", divided, keys=("2", *("greater_than_sign",) * 4)),
    Moment("requests-searched", divided, keys=("2", "slash", *"decoding", "enter")),
    Moment("inspect", divided, keys=("2", *("down",) * 12, "enter")),
    Moment("cancel", divided, keys=("2", "c")),
    Moment("events", divided, later_s=300.0, keys=("3",)),
    Moment("event", divided, later_s=300.0, keys=("3", "enter")),
    Moment("events-all", divided, keys=("3", "x")),
    Moment("paused", divided, keys=("p",)),
    Moment("stale", divided, late_s=12.0),
    Moment("disconnected", divided, turn=LOST, late_s=0.0),
    Moment("ended", divided, turn=OVER, late_s=0.0),
    Moment("never-connected", turn=lambda items: LOST(items)[-1:], late_s=0.0),
    Moment("connecting", turn=lambda items: [], late_s=0.0),
    Moment("starting", lambda state: state["state"] == "starting" and state["engine"]["phase"] is not None),
    Moment("restarting", lambda state: state["state"] == "restarting", later_s=2.0),
    Moment("failed", divided, turn=_failed),
    Moment("draining", lambda state: state["drain"]["state"] == "draining", later_s=3.0),
)
BY_NAME = {moment.name: moment for moment in MOMENTS}


def still(moment: Moment) -> StillSource:
    """The demo at this moment. Raises LookupError when it does not come within two hours."""
    items, demo = _watched(moment.until, moment.later_s)
    at_s = items[-1].at_s
    turned = moment.turn(list(items))
    return StillSource(turned, (turned[-1].at_s if turned else at_s) + moment.late_s, demo.operator)


@cache
def _watched(until: Callable[[Any], bool], later_s: float) -> tuple[list[Item], DemoSource]:
    """What was seen before; many pictures are of one moment."""
    demo = DemoSource(began_s=BEGAN_S)
    items: list[Item] = []
    left_s: float | None = None
    for _ in range(int(LIMIT_S / STEP_S)):
        seen = demo.advance(STEP_S)
        items.append(seen)
        del items[: -int(WATCHED_S / STEP_S)]
        if left_s is None and until(seen.frame.state):
            left_s = later_s
        if left_s is not None:
            if left_s <= 0:
                return items, demo
            left_s -= STEP_S
    raise LookupError(f"{until.__name__} does not hold within {LIMIT_S:.0f} s of the demo")
