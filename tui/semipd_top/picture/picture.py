"""What a screen shows: one immutable picture of the daemon, and the monitor that draws it from items."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from semipd.core.state.daemon import StateDocument
from semipd.core.state.requests import RequestRow
from semipd_top.picture.event_text import DecisionWatch, Event, is_notable
from semipd_top.picture.history import Sample, sample_of
from semipd_top.sources.contract import Gone, Item, Seen

Link = Literal["connecting", "live", "stale", "disconnected", "ended"]
"""stale: connected, but the newest frame is old; ended: a recording is over."""

STALE_AFTER_S = 3.0
"""And three intervals, whichever is longer."""

MAX_SAMPLES = 3600
MAX_EVENTS = 3000
MAX_NOTABLE = 1000
"""Events that an operator wants to see unasked are kept apart: each request brings six of the others."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything a screen needs.

    Attributes:
        now_s: Unix time of the picture, by the source's clock.
        interval_s: between two frames, as asked for.
        state: the newest state frame's; None: none has come yet.
        seen_s: when it came.
        gone: what was said when the connection was lost or refused; None while there is one.
        samples: what is drawn over time, oldest first.
        events: of all kinds, oldest first; `lost` more were overwritten before they could be read.
        notable: those of them an operator wants to see unasked, kept for longer.
        requests: live and recent ones, each newest first.
    """

    now_s: float
    interval_s: float
    state: StateDocument | None = None
    seen_s: float | None = None
    gone: Gone | None = None
    samples: Sequence[Sample] = ()
    events: Sequence[Event] = ()
    notable: Sequence[Event] = ()
    lost: int = 0
    requests: Sequence[RequestRow] = ()

    @property
    def age_s(self) -> float | None:
        """Of the newest frame."""
        return None if self.seen_s is None else max(self.now_s - self.seen_s, 0.0)

    @property
    def link(self) -> Link:
        if self.gone is not None:
            return "disconnected" if self.gone.retry_s is not None else "ended"
        if self.age_s is None:
            return "connecting"
        return "stale" if self.age_s > max(STALE_AFTER_S, 3 * self.interval_s) else "live"


class Monitor:
    """Takes items as they come; `picture` is cheap and changes nothing."""

    def __init__(self, interval_s: float) -> None:
        self._newest = Picture(now_s=0.0, interval_s=interval_s)
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._notable: deque[Event] = deque(maxlen=MAX_NOTABLE)
        self._decisions = DecisionWatch()

    def take(self, item: Item) -> None:
        match item:
            case Seen():
                self._see(item)
            case Gone():
                self._newest = replace(self._newest, gone=item)

    def picture(self, now_s: float) -> Picture:
        return replace(self._newest, now_s=now_s)

    def _see(self, item: Seen) -> None:
        frame, before = item.frame, self._newest
        self._samples.append(sample_of(frame.state, before.state))
        decision = self._decisions.see(frame.state)
        events: list[Event] = [*frame.events, decision] if decision is not None else [*frame.events]
        self._events.extend(events)
        notable = [event for event in events if is_notable(event)]
        self._notable.extend(notable)
        self._newest = replace(
            before,
            state=frame.state,
            seen_s=item.at_s,
            gone=None,
            samples=tuple(self._samples),
            events=tuple(self._events) if events else before.events,
            notable=tuple(self._notable) if notable else before.notable,
            lost=before.lost + frame.lost,
            requests=before.requests if item.requests is None else tuple(item.requests),
        )
