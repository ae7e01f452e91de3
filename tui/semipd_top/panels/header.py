"""The two lines above every view: where we are, the indicators, how fresh this is, what is unusual."""

from typing import Literal, NamedTuple

from semipd.core.state.daemon import DrainState, EngineState, health
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import Line, Span, Style, fit, line, spread
from semipd_top.text.numbers import clock, countdown, duration

VIEWS = ("overview", "requests", "events")
TIGHT, ROOMY = 60, 100
"""From these widths on the header has room for the indicators, and for the time of day."""

Condition = Literal[
    "live",
    "connecting",
    "stale",
    "disconnected",
    "ended",
    "starting",
    "restarting",
    "failed",
    "stopping",
    "draining",
    "drained",
    "paused",
]


class Frame(NamedTuple):
    """What the screen knows beside the picture. `recording`: how it goes; empty: there is none. `speed`:
    of a replay."""

    view: str = "overview"
    title: str = ""
    paused: bool = False
    read_only: bool = False
    recording: str = ""
    speed: float | None = None


def condition_of(picture: Picture, paused: bool) -> Condition:
    """The one thing to say first: no connection before an engine's trouble before a drain."""
    if picture.link != "live" and not (paused and picture.link == "stale"):
        return picture.link
    state = picture.state
    assert state is not None, "a picture without a state is not live"
    found = _ENGINE.get(state["state"]) or _DRAIN.get(state["drain"]["state"])
    return found or ("paused" if paused else "live")


_ENGINE: dict[str, Condition] = {
    "starting": "starting",
    "restarting": "restarting",
    "failed": "failed",
    "stopping": "stopping",
}
_DRAIN: dict[str, Condition] = {"draining": "draining", "drained": "drained", "stopping": "draining"}

LOOKS: dict[Condition, tuple[str, Style]] = {
    "live": ("● LIVE", "ok"),
    "connecting": ("◌ CONNECTING", "warn"),
    "stale": ("◷ STALE", "warn"),
    "disconnected": ("✘ DISCONNECTED", "bad"),
    "ended": ("■ ENDED", "warn"),
    "starting": ("◌ STARTING", "warn"),
    "restarting": ("↻ RESTARTING", "bad"),
    "failed": ("✘ FAILED", "bad"),
    "stopping": ("▼ STOPPING", "warn"),
    "draining": ("▼ DRAINING", "warn"),
    "drained": ("▼ DRAINED", "warn"),
    "paused": ("❚❚ PAUSED", "key"),
}


def header(picture: Picture, frame: Frame, width: int) -> list[Line]:
    condition = condition_of(picture, frame.paused)
    word, style = LOOKS[condition]
    time = f" {clock(picture.now_s)} " if width >= ROOMY else ""
    indicators = _indicators(picture) if width >= TIGHT else ()
    right = line(indicators, Span(f" {word} ", style), Span(time, "dim"))
    return [spread(_tabs(frame.view), right, width), fit(_banner(picture, frame, condition, width), width)]


def _tabs(view: str) -> Line:
    spans: list[Span] = []
    for number, name in enumerate(VIEWS, start=1):
        style: Style = "title" if name == view else "dim"
        text = f"[{number} {name}]" if name == view else f" {number} {name} "
        spans.append(Span(text, style, action=f"app.view('{name}')"))
    return tuple(spans)


def _indicators(picture: Picture) -> Line:
    """Process up, loop turning, tokens moving; an old picture does not say so."""
    if picture.state is None or picture.link not in ("live", "ended"):
        return ()
    return tuple(
        Span(f"{name} {'✔' if ok else '✘'}  ", "ok" if ok else "bad")
        for name, ok in health(picture.state["lamps"])
    )


def _banner(picture: Picture, frame: Frame, condition: Condition, width: int) -> Line:
    words = _words(picture, condition)
    if words:
        return line(Span(f" {words}", LOOKS[condition][1]))
    state = picture.state
    assert state is not None, f"{condition} without a state"
    left = line(Span(f" {state['model']['name']}", "strong"), f"  up {duration(state['uptime_s'])}")
    room = max(width // 2, 1)
    title = frame.title if len(frame.title) <= room else f"…{frame.title[1 - room :]}"
    facts = [title, "" if frame.speed is None else f"{frame.speed:g}x", frame.recording]
    facts.append("read-only" if frame.read_only else "")
    return spread(left, line(Span(", ".join(filter(None, facts)) + " ", "dim")), width)


def _words(picture: Picture, condition: Condition) -> str:
    """What an operator has to know about this condition; empty: nothing."""
    match condition:
        case "connecting":
            return "Connected, waiting for the first numbers."
        case "stale":
            return f"No news for {duration(picture.age_s)}: what you see is old."
        case "disconnected" | "ended":
            return _gone(picture)
        case "starting" | "restarting" | "failed" | "stopping" if picture.state is not None:
            return engine_words(picture.state["engine"])
        case "draining" | "drained" if picture.state is not None:
            return _drain(picture.state["drain"])
        case "paused":
            return "This picture stands still; p shows what happens now."
    return ""


_HAPPENS = {
    "starting": "The engine starts",
    "restarting": "The engine is being replaced",
    "failed": "The engine is gone for good",
    "stopping": "The daemon stops",
    "ready": "The engine does not answer",
}


def _gone(picture: Picture) -> str:
    gone = picture.gone
    assert gone is not None
    words = f"{gone.message} {gone.hint}".strip()
    age = f" The numbers are {duration(picture.age_s)} old." if picture.age_s is not None else ""
    if gone.retry_s is None:
        return words
    return f"Next try in {countdown(gone.retry_s - picture.now_s)}.{age} {words}"


def engine_words(engine: EngineState) -> str:
    """What becomes of an engine that does not serve."""
    words = _HAPPENS.get(engine["state"], f"The engine is {engine['state']}")
    if engine["attempt"]:
        words += f", attempt {engine['attempt']}"
    if engine["backoff_left_s"]:
        words += f" in {engine['backoff_left_s']:.0f} s"
    if phase := engine["phase"]:
        words += f": {phase['name']} for {phase['seconds']:.1f} of at most {phase['limit_s']:g} s"
    if engine["why"]:
        words += f". {engine['why']}"
    return f"{words} {engine['hint']}" if engine["hint"] else words


def _drain(drain: DrainState) -> str:
    if drain["state"] == "drained":
        words = "Drained: new requests are refused"
    else:
        left = "" if drain["seconds_left"] is None else f", {countdown(drain['seconds_left'])} left"
        oldest_ms = drain["oldest_ms"]
        oldest = "" if oldest_ms is None else f" (the oldest runs for {duration(oldest_ms / 1e3)})"
        words = f"New requests are refused; {drain['awaited']} to finish{oldest}{left}"
    by = f", asked for by {drain['actor']}" if drain["actor"] else ""
    return f"{words}{by}" + (f": {drain['reason']}" if drain["reason"] else "")
