"""Widgets that show lines and redraw only the cells that have changed."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from semipd_top.screen.palette import Palette, palette_for
from semipd_top.text.lines import EMPTY, Line, width_of


def palette_of(widget: Widget) -> Palette:
    theme = widget.app.current_theme
    return palette_for(dark=theme.dark, ansi=theme.ansi, grey=widget.app.no_color)


class LinesWidget(Widget, inherit_bindings=False):
    """Shows what it is given; a span's action is done by a click on it."""

    auto_links = False

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Line] = ()
        self._base = Style.null()

    @property
    def lines(self) -> Sequence[Line]:
        return self._lines

    def show(self, lines: Sequence[Line]) -> None:
        before, self._lines = self._lines, lines
        regions = [
            Region(cells[0], y, cells[1] - cells[0], 1)
            for y in range(max(len(before), len(lines)))
            if (cells := changed_cells(_at(before, y), _at(lines, y))) is not None
        ]
        if regions:
            self.refresh(*regions)

    def render_lines(self, crop: Region) -> list[Strip]:
        # Textual puts it together from all ancestors each time that it is asked
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        base = self._base
        segments = palette_of(self).segments(_at(self._lines, y), base)
        strip = Strip(segments or [Segment("", base)])
        return strip.adjust_cell_length(self.size.width, base)


def changed_cells(before: Line, after: Line) -> tuple[int, int] | None:
    """From the first to behind the last cell that differ, whole spans; None: nothing does."""
    if before == after:
        return None
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    same_end = 0
    longest = max(width_of(before), width_of(after))
    if width_of(before) == width_of(after):
        while (
            same_end < min(len(before), len(after)) - same and before[-1 - same_end] == after[-1 - same_end]
        ):
            same_end += 1
    return width_of(after[:same]), longest - width_of(after[len(after) - same_end :])


def _at(lines: Sequence[Line], y: int) -> Line:
    return lines[y] if y < len(lines) else EMPTY
