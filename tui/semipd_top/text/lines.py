"""Text with meaning: what panels are made of. No colours here (palette.py), no terminal, no widget.

A panel is a pure function (picture, width, height) -> lines. A style is a word for what a span means; whoever
shows it decides how that looks.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size

Style = Literal["", "dim", "strong", "title", "prefill", "decode", "merged", "ok", "warn", "bad", "key"]


class Span(NamedTuple):
    """`under`: the style whose colour lies behind the text, for charts. `action`: what a click on it does."""

    text: str
    style: Style = ""
    under: Style = ""
    action: str = ""


Line = tuple[Span, ...]

EMPTY: Line = ()


def line(*parts: str | Span | Iterable[Span]) -> Line:
    """Spans in a row; plain text has no style, empty text is left out."""
    spans: list[Span] = []
    for part in parts:
        if isinstance(part, str):
            spans.append(Span(part))
        elif isinstance(part, Span):
            spans.append(part)
        else:
            spans.extend(part)
    return tuple(span for span in spans if span.text)


def plain(spans: Line) -> str:
    return "".join(span.text for span in spans)


def width_of(spans: Iterable[Span]) -> int:
    """Terminal cells."""
    return sum(cell_len(span.text) for span in spans)


def fit(spans: Line, width: int) -> Line:
    """Exactly `width` cells: padded with blanks, or cut with an ellipsis."""
    have = width_of(spans)
    if have <= width:
        return (*spans, Span(" " * (width - have))) if have < width else spans
    kept: list[Span] = []
    left = width - 1
    for span in spans:
        if cell_len(span.text) >= left:
            kept.append(span._replace(text=set_cell_size(span.text, max(left, 0)) + "…"))
            break
        kept.append(span)
        left -= cell_len(span.text)
    return tuple(kept) if width > 0 else ()


def spread(left: Line, right: Line, width: int) -> Line:
    """Both ends of a line; the right end is kept when there is no room for both."""
    room = width - width_of(right)
    return (*fit(left, room), *right) if room > 0 else fit(right, width)


def beside(columns: Sequence[tuple[Sequence[Line], int]], gap: int = 2) -> list[Line]:
    """Columns of lines with their widths, side by side."""
    height = max((len(lines) for lines, _ in columns), default=0)
    rows: list[Line] = []
    for idx in range(height):
        row: list[Span] = []
        for lines, width in columns:
            row += fit(lines[idx] if idx < len(lines) else EMPTY, width)
            row.append(Span(" " * gap))
        rows.append(tuple(row[:-1]))
    return rows
