"""Bars and lines made of block characters. Pure: values in, spans out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from semipd_top.text.lines import Line, Span, Style

Value = TypeVar("Value")

EIGHTHS = " ▁▂▃▄▅▆▇█"


def sparkline(
    values: Sequence[float | None],
    width: int,
    style: Style = "",
    limit: float | None = None,
    top: float | None = None,
) -> Line:
    """The last `width` values, newest at the right; scaled to `top`, or to the greatest. Those above `limit`
    are marked; None leaves a gap."""
    shown = _newest(values, width)
    if top is None:
        top = max((value for value in shown if value is not None), default=0.0)
    pieces = [Span(" " * (width - len(shown)))]
    pieces += [Span(_eighth(value, top), _marked(value, limit, style)) for value in shown]
    return _joined(pieces)


def column_chart(
    values: Sequence[float | None], width: int, height: int, style: Style = "", limit: float | None = None
) -> list[Line]:
    """The same, several rows high."""
    shown = _newest(values, width)
    top = max((value for value in shown if value is not None), default=0.0)
    blank = Span(" " * (width - len(shown)))
    rows: list[Line] = []
    for row in range(height - 1, -1, -1):
        cells = [Span(_cell(value, top, row, height), _marked(value, limit, style)) for value in shown]
        rows.append(_joined([blank, *cells]))
    return rows


def bar(parts: Sequence[tuple[float, str, Style]], width: int) -> Line:
    """(share, character, style) side by side; shares sum to at most 1. Whoever has a share at all gets a
    cell while there are any; rounding never exceeds the width."""
    cells = shares_to_cells([share for share, _, _ in parts], width)
    return _joined(
        [Span(char * num, style) for num, (_, char, style) in zip(cells, parts, strict=True)]
        + [Span(" " * (width - sum(cells)))]
    )


def shares_to_cells(shares: Sequence[float], width: int) -> list[int]:
    """Whole cells for shares of a bar: at least one for a share above zero, as near as possible else. Where
    there are not enough for all, the smallest go without."""
    width = max(width, 0)
    cells = [max(int(share * width + 0.5), 1 if share > 0 else 0) for share in shares]
    while sum(cells) > width:
        rounded_up = [(num > 1, num - share * width) for num, share in zip(cells, shares, strict=True)]
        givers = [idx for idx, num in enumerate(cells) if num]
        cells[max(givers, key=lambda idx: rounded_up[idx])] -= 1
    return cells


def _newest(values: Sequence[Value], width: int) -> Sequence[Value]:
    return values[-width:] if width > 0 else ()


def columns(values: Sequence[object], width: int, draw: Callable[[object], Span]) -> Line:
    """One cell for each of the last `width` values, newest at the right."""
    shown = _newest(values, width)
    return _joined([Span(" " * (width - len(shown))), *(draw(value) for value in shown)])


def _marked(value: float | None, limit: float | None, style: Style) -> Style:
    return "bad" if limit is not None and value is not None and value > limit else style


def _eighth(value: float | None, top: float) -> str:
    if value is None:
        return " "
    if top <= 0 or value <= 0:
        return EIGHTHS[1]
    return EIGHTHS[max(min(int(value / top * 8 + 0.5), 8), 1)]


def _cell(value: float | None, top: float, row: int, height: int) -> str:
    """The part of a column that lies in this row, counted from below."""
    if value is None:
        return " "
    eighths = max(round(value / top * height * 8), 1) if top > 0 else 1
    return EIGHTHS[max(min(eighths - row * 8, 8), 0)]


def _joined(pieces: Sequence[Span]) -> Line:
    """Neighbours of one look become one span."""
    spans: list[Span] = []
    for piece in pieces:
        if not piece.text:
            continue
        if spans and spans[-1][1:] == piece[1:]:
            spans[-1] = spans[-1]._replace(text=spans[-1].text + piece.text)
        else:
            spans.append(piece)
    return tuple(spans)
