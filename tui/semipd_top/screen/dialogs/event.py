"""One event in full: tables cut long words."""

from collections.abc import Iterable
from textwrap import wrap

from textual.widget import Widget

from semipd_top.picture.event_text import Event, describe, style_of
from semipd_top.screen.dialogs.base import Dialog, Reading
from semipd_top.text.lines import EMPTY, Line, Span, line
from semipd_top.text.numbers import clock


class EventDialog(Dialog):
    heading = "Event"
    keep_label = "Close"

    def __init__(self, event: Event) -> None:
        super().__init__()
        self._event = event

    def content(self) -> Iterable[Widget]:
        yield Reading()

    def on_resize(self) -> None:
        reading = self.query_one(Reading)
        reading.show(event_lines(self._event, max(reading.size.width - 2, 20)))


def event_lines(event: Event, width: int) -> list[Line]:
    """The words, then what the daemon sent."""
    kind = Span(event["kind"].replace("_", " "), style_of(event["kind"]))
    lines = [line(Span(f"{clock(event['at_s'])}  ", "dim"), kind, f"  {event['request_id'] or ''}")]
    lines += [line(part) for part in wrap(describe(event), width)]
    lines.append(EMPTY)
    for name, value in event["data"].items():
        first, *rest = wrap(str(value), max(width - 18, 10)) or [""]
        lines.append(line(Span(f"{name:18}", "dim"), first))
        lines += [line(" " * 18, part) for part in rest]
    return lines
