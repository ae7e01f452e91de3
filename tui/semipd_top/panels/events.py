"""The last events that an operator wants to see unasked."""

from semipd_top.panels.frame import framed, waiting
from semipd_top.picture.event_text import event_line
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import Line
from semipd_top.text.numbers import clock


def events_panel(picture: Picture, width: int, height: int) -> list[Line]:
    newest = picture.notable[:-height:-1] if height > 1 else ()
    body = [event_line(event, clock) for event in newest] or waiting(
        "Nothing has happened since this screen began."
    )
    return framed("Events", (), body, width, height, action="app.view('events')")
