"""A table that keeps the reader's place while its rows come, change and go, and draws only what is seen.

Textual's DataTable renders each cell for itself and measures all of them, seen or not: with 200 requests that
change every second it took an eighth of a core.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from semipd_top.screen.widgets import palette_of
from semipd_top.text.lines import Line, Span, fit, plain

PADDING = 1
"""Cells left and right of each column: two columns are listing.COLUMN_GAP apart."""


class TableColumn(NamedTuple):
    name: str
    width: int
    right: bool = False


class TableRow(NamedTuple):
    key: str
    cells: tuple[Span, ...]


class SyncedTable(ScrollView, can_focus=True, inherit_bindings=False):
    """`sync` redraws only the cells that differ. The cursor stays on its row, whatever moves around it; at
    the top it stays at the top."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--header", "table--cursor"}

    DEFAULT_CSS = """
    SyncedTable {
        & > .table--header { background: $panel; text-style: bold; }
        & > .table--cursor {
            color: $block-cursor-blurred-foreground;
            background: $block-cursor-blurred-background;
            text-style: $block-cursor-blurred-text-style;
        }
        &:focus > .table--cursor {
            color: $block-cursor-foreground;
            background: $block-cursor-background;
            text-style: $block-cursor-text-style;
        }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False, system=True),
        Binding("down", "move(1)", "Down", show=False, system=True),
        Binding("pageup", "page(-1)", "Page up", show=False, system=True),
        Binding("pagedown", "page(1)", "Page down", show=False, system=True),
        Binding("home,ctrl+home", "move_to(0)", "Top", show=False, system=True),
        Binding("end,ctrl+end", "move_to(-1)", "Bottom", show=False, system=True),
        Binding("left", "scroll_left", "Left", show=False, system=True),
        Binding("right", "scroll_right", "Right", show=False, system=True),
    ]

    class Clicked(Message):
        def __init__(self, table: "SyncedTable") -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> "SyncedTable":
            return self.table

    class RowSelected(Clicked):
        """The row under the cursor was clicked."""

    class HeaderSelected(Clicked):
        """The name of a column was clicked."""

        def __init__(self, table: "SyncedTable", column_index: int) -> None:
            super().__init__(table)
            self.column_index = column_index

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.rows: Sequence[TableRow] = ()
        self.cursor_row = 0
        self._columns: Sequence[TableColumn] = ()
        self._base = Style.null()

    @property
    def chosen(self) -> str | None:
        """Key of the row under the cursor."""
        return self.rows[self.cursor_row].key if self.cursor_row < len(self.rows) else None

    def set_columns(self, columns: Sequence[TableColumn]) -> None:
        """Anew; the rows have to be synced again."""
        self._columns = columns
        self.rows = ()
        self._resize()
        self.refresh()

    def sync(self, rows: Sequence[TableRow]) -> None:
        before = self._seen()
        moved = self._follow(rows)
        self.rows = rows
        self._resize()
        self.cursor_row += moved
        if self.cursor_row:
            self.scroll_to(y=self.scroll_y + moved, animate=False, force=True)
        for y, (old, new) in enumerate(zip(before, self._seen(), strict=True), start=1):
            if old != new:
                self.refresh(self._changed(y, old, new))

    def render_lines(self, crop: Region) -> list[Strip]:
        # Textual puts it together from all ancestors each time that it is asked
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        width, left = self.size.width, self.scroll_offset.x
        idx = self.scroll_offset.y + y - 1
        base = self._base
        if y == 0:
            base += self.get_component_rich_style("table--header")
            segments = palette_of(self).segments(self._heading(), base)
        elif idx >= len(self.rows):
            segments = []
        elif idx == self.cursor_row:
            # what lies behind it may be of the colour of a word
            base += self.get_component_rich_style("table--cursor")
            segments = [Segment(plain(self._line(self.rows[idx].cells)), base)]
        else:
            segments = palette_of(self).segments(self._line(self.rows[idx].cells), base)
        return Strip(segments).crop_extend(left, left + width, base)

    def action_move(self, step: int) -> None:
        self._put_cursor(self.cursor_row + step)

    def action_page(self, step: int) -> None:
        self._put_cursor(self.cursor_row + step * max(self._num_seen - 1, 1))

    def action_move_to(self, row: int) -> None:
        self._put_cursor(row % max(len(self.rows), 1))

    def on_click(self, event: events.Click) -> None:
        x, y = event.x + self.scroll_offset.x, event.y + self.scroll_offset.y - 1
        if event.y == 0:
            ends = accumulate(column.width + 2 * PADDING for column in self._columns)
            clicked = next((idx for idx, end in enumerate(ends) if x < end), None)
            if clicked is not None:
                self.post_message(self.HeaderSelected(self, clicked))
        elif y == self.cursor_row and y < len(self.rows):
            self.post_message(self.RowSelected(self))
        elif y < len(self.rows):
            self._put_cursor(y)

    def _put_cursor(self, row: int) -> None:
        """There, or as near as rows go; it is seen then."""
        row = max(min(row, len(self.rows) - 1), 0)
        before, self.cursor_row = self.cursor_row, row
        top = self.scroll_offset.y
        for idx in (before, row):
            self.refresh(Region(0, idx - top + 1, self.size.width, 1))
        self.scroll_to(y=min(max(top, row - self._num_seen + 1), row), animate=False, force=True)

    @property
    def _num_seen(self) -> int:
        """Rows that there is room for."""
        return max(self.size.height - 1, 0)

    def _seen(self) -> list[tuple[bool, tuple[Span, ...]]]:
        """Of each row that there is room for: whether the cursor is there, and its cells."""
        top = self.scroll_offset.y
        shown = [
            (idx == self.cursor_row, row.cells)
            for idx, row in enumerate(self.rows[top:][: self._num_seen], top)
        ]
        return shown + [(False, ())] * (self._num_seen - len(shown))

    def _follow(self, rows: Sequence[TableRow]) -> int:
        """How far the row under the cursor moves; if it goes, the cursor stays as near as it can."""
        if not self.cursor_row or not rows:
            return -self.cursor_row
        key = self.chosen
        kept = next((idx for idx, row in enumerate(rows) if row.key == key), None)
        return (min(self.cursor_row, len(rows) - 1) if kept is None else kept) - self.cursor_row

    def _changed(
        self, y: int, old: tuple[bool, tuple[Span, ...]], new: tuple[bool, tuple[Span, ...]]
    ) -> Region:
        """From the first cell that differs to the last one."""
        if old[0] != new[0] or len(old[1]) != len(new[1]):
            return Region(0, y, self.size.width, 1)
        ends = list(accumulate(column.width + 2 * PADDING for column in self._columns))
        differ = [
            idx for idx, (before, after) in enumerate(zip(old[1], new[1], strict=True)) if before != after
        ]
        first = ends[differ[0] - 1] if differ[0] else 0
        region = Region(first - self.scroll_offset.x, y, ends[differ[-1]] - first, 1)
        return region.intersection(Region(0, y, self.size.width, 1))

    def _resize(self) -> None:
        width = sum(column.width + 2 * PADDING for column in self._columns)
        self.virtual_size = Size(width, len(self.rows) + 1)

    def _heading(self) -> Line:
        names = [column.name.rjust(column.width) if column.right else column.name for column in self._columns]
        return self._line([Span(name) for name in names])

    def _line(self, cells: Sequence[Span]) -> Line:
        gap = " " * PADDING
        return tuple(
            cell._replace(text=gap + plain(fit((cell,), column.width)) + gap)
            for cell, column in zip(cells, self._columns, strict=True)
        )
