"""Events in words: one line each, for the events view, the first screen and a request's timeline."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict

from semipd.core.events import EventRow
from semipd.core.slo import DEFAULT_CLASS
from semipd.core.split import Units
from semipd.core.state.daemon import StateDocument
from semipd.core.state.partition import SharedSplit
from semipd_top.text.lines import Line, Span, Style, line
from semipd_top.text.numbers import count, duration, latency

Data = Any
"""Of one kind of event: what stands in it is in semipd.core.events."""


class Decided(TypedDict):
    """Not the daemon's: seen in state frames, see DecisionWatch."""

    id: str
    at_s: float
    kind: Literal["decided"]
    request_id: None
    data: SharedSplit


Event = EventRow | Decided

COMMON = frozenset(
    {
        "arrived",
        "queued",
        "to_background",
        "from_background",
        "admitted",
        "first_token",
        "first_byte",
        "finished",
        "request_resumed",
        "split_changed",
    }
)
"""Kinds that come many times a second, shown on demand only: each request has them, and a lane that lends its
units changes the split twice."""

HELD_S = 2.0
"""Near a target the policy may want one thing and another in turn, several times a second."""


class DecisionWatch:
    """Sees in state frames what the policy decides: another split, or merged steps instead of one. A
    decision is told once it has held; sizes of merged steps, which follow the load, are none. What operators
    decide has an event of its own."""

    def __init__(self) -> None:
        self._told: object = None
        self._wanted: object = None
        self._since_s = 0.0

    def see(self, state: StateDocument) -> Decided | None:
        """The event of a decision that has just held for `HELD_S`."""
        partition = state["partition"]
        if not partition or partition["mode"] != "auto":
            self._wanted = None
            return None
        shared = partition["shared"]
        wanted = (tuple(shared["split"]), shared["merged_tokens"] > 0)
        if wanted != self._wanted:
            self._wanted, self._since_s = wanted, state["at_s"]
        if self._told is None:
            self._told = wanted
        if wanted == self._told or state["at_s"] - self._since_s < HELD_S:
            return None
        self._told = wanted
        return {"id": "", "at_s": state["at_s"], "kind": "decided", "request_id": None, "data": shared}


_STYLES: dict[str, Style] = {
    "engine_died": "bad",
    "worker_died": "bad",
    "engine_restarted": "ok",
    "worker_restarted": "ok",
    "refused": "warn",
    "preempted": "warn",
    "to_background": "warn",
    "slow_step": "warn",
    "drain_changed": "warn",
    "partition_changed": "key",
    "slo_changed": "key",
    "decided": "title",
}


def style_of(kind: str) -> Style:
    return _STYLES.get(kind, "")


def is_notable(event: Event) -> bool:
    """Whether an operator wants to see it unasked."""
    return event["kind"] not in COMMON


def describe(event: Event) -> str:
    """Without time and kind. A kind that this release does not know shows its data."""
    words = _WORDS.get(event["kind"])
    return words(event["data"]) if words is not None else _plain(event["data"])


def event_line(event: Event, clock: Callable[[float], str]) -> Line:
    who = f"  {event['request_id']:.8}" if event["request_id"] else ""
    return line(
        Span(clock(event["at_s"]) + " ", "dim"),
        Span(f"{event['kind'].replace('_', ' '):18}", style_of(event["kind"])),
        describe(event),
        Span(who, "dim"),
    )


def _split(units: Units) -> str:
    return f"{units[0]}+{units[1]}"


def _because(data: Data) -> str:
    return f": {data['reason']}" if data.get("reason") else ""


def _partition_changed(data: Data) -> str:
    split = f" {_split(data['granted'])}" if data["granted"] else ""
    limit = f" for {duration(data['expires_s'])}" if data["expires_s"] else ""
    return f"{data['mode']}{split}{limit}, by {data['actor']}{_because(data)}"


_TARGETS = {"ttft_ms": "TTFT", "ttft_ms_per_1k_tokens": "per 1k tokens", "tpot_ms": "TPOT", "itl_ms": "ITL"}


def _slo_changed(data: Data) -> str:
    """Of the class `default` also how it is measured. A daemon of before knew two targets of one class."""
    name = data.get("service_class", DEFAULT_CLASS)
    targets = [f"{word} {data[key]:g} ms" for key, word in _TARGETS.items() if data.get(key)]
    shown = ", ".join(targets) or "no targets"
    if name == DEFAULT_CLASS:
        shown += f" at p{data['percentile']:g} over {duration(data['window_s'])}"
    else:
        shown = f"{name}: {shown}"
    return f"{shown}, by {data['actor']}{_because(data)}"


def _split_changed(data: Data) -> str:
    ends = f"{_split(data['from'])} to {_split(data['to'])} in {latency(data['switch_ms'])}"
    return f"{ends}, {data['rule']}{_because(data)}"


def _decided(data: Data) -> str:
    way = "merged steps" if data["merged_tokens"] else f"split {_split(data['split'])}"
    return f"{way}, {data['rule']}{_because(data)}"


def _finished(data: Data) -> str:
    code = f" ({data['code']})" if "code" in data else ""
    tpot = "" if data.get("tpot_ms") is None else f", TPOT {latency(data['tpot_ms'])}"
    return f"{data['reason']}{code} after {data['output_tokens']} tokens{tpot}"


def _slow_step(data: Data) -> str:
    return (
        f"{data['lane']} step {data['step_id']} took {latency(data['busy_ms'])}, predicted "
        f"{latency(data['predicted_ms'])}: {data['new_tokens']} prompt tokens, {data['num_decodes']} "
        f"streams on {data['units']} units"
    )


def _drain_changed(data: Data) -> str:
    limit = "" if data.get("limit_s") is None else f" within {duration(data['limit_s'])}"
    return f"{data['state']}{limit}, {data['awaited']} awaited, by {data['actor']}{_because(data)}"


def _worker_died(data: Data) -> str:
    signal = f" by {data['signal']}" if data["signal"] else ""
    return f"the {data['lane']} lane's worker, pid {data['pid']}: {data['how']}{signal}"


def _to_background(data: Data) -> str:
    why = "would be late" if data["reason"] == "late" else "has no target"
    expected_ms = data["expected_start_ms"]
    return why + ("" if expected_ms is None else f", to be begun in {latency(expected_ms)}")


def _plain(data: Data) -> str:
    return " ".join(f"{name}={value}" for name, value in data.items())


_WORDS: dict[str, Callable[[Data], str]] = {
    "arrived": lambda d: (
        f"{count(d['prompt_tokens'])} prompt tokens, at most {count(d['max_tokens'])} of output"
    ),
    "queued": lambda d: f"{count(d['prompt_tokens'])} prompt tokens",
    "admitted": lambda d: f"{count(d['cached_tokens'])} of {count(d['tokens'])} tokens found as a prefix",
    "to_background": _to_background,
    "from_background": lambda d: "can be in time after all",
    "first_token": lambda d: "the engine's first token",
    "first_byte": lambda d: f"left the daemon, TTFT {latency(d['ttft_ms'])}",
    "preempted": lambda d: (
        f"gave up {count(d['blocks'])} blocks, {count(d['tokens_lost'])} tokens to compute again"
    ),
    "finished": _finished,
    "refused": lambda d: f"{d['code']}{': ' + d['message'] if 'message' in d else ''}",
    "split_changed": _split_changed,
    "partition_changed": _partition_changed,
    "slo_changed": _slo_changed,
    "engine_died": lambda d: f"{d['why']} ({count(d['in_flight'])} requests in flight)",
    "engine_restarted": lambda d: f"after {duration(d['outage_s'])}, on {d['device']}",
    "request_resumed": lambda d: f"goes on after {count(d['output_tokens'])} tokens",
    "worker_died": _worker_died,
    "worker_restarted": lambda d: (
        f"the {d['lane']} lane's worker, after {duration(d['seconds'])}, pid {d['pid']}"
    ),
    "slow_step": _slow_step,
    "decided": _decided,
    "drain_changed": _drain_changed,
}
