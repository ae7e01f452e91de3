"""What all panels share: a rule with a title above, exactly as many lines as there is room for."""

from collections.abc import Sequence

from semipd_top.text.lines import EMPTY, Line, Span, fit, line, width_of

RULE = "─"


def framed(
    title: str, note: Line, body: Sequence[Line], width: int, height: int, action: str = ""
) -> list[Line]:
    """`height` lines of `width` cells. `note` stands at the right end of the rule if there is room."""
    head = line(Span(f"{RULE} ", "dim"), Span(title, "title", action=action), Span(" ", "dim"))
    room = width - width_of(head)
    tail: Line = line(Span(" "), *note, Span(f" {RULE}", "dim")) if note else EMPTY
    if width_of(tail) > room - 1:
        tail = EMPTY
    rule = Span(RULE * (room - width_of(tail)), "dim")
    lines = [fit(text, width) for text in ((*head, rule, *tail), *body)]
    return (lines + [fit(EMPTY, width)] * height)[:height]


def waiting(what: str) -> list[Line]:
    """The body of a panel whose facts only an engine knows."""
    return [line(Span(what, "dim"))]
