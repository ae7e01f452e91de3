"""The last events that an operator wants to see unasked."""

from semipd_top.lines import Line
from semipd_top.news import event_line, is_news
from semipd_top.numbers import clock
from semipd_top.panels.frame import framed, waiting
from semipd_top.picture import Picture


def events_panel(picture: Picture, width: int, height: int) -> list[Line]:
    shown = []
    for event in reversed(picture.events):
        if is_news(event):
            shown.append(event_line(event, clock))
            if len(shown) == height - 1:
                break
    body = shown or waiting("Nothing has happened since this screen began.")
    return framed("Events", (), body, width, height, action="app.view('events')")
