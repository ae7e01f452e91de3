"""A table that keeps the reader's place while its rows come, change and go."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text
from textual.coordinate import Coordinate
from textual.theme import Theme
from textual.widgets import DataTable

from semipd_top.lines import Span
from semipd_top.widgets import palette_of


class Column(NamedTuple):
    name: str
    width: int
    right: bool = False


class TableRow(NamedTuple):
    key: str
    cells: tuple[Span, ...]


class SyncedTable(DataTable[Text]):
    """`sync` changes only the cells that differ. The cursor stays on its row, whatever moves around it;
    at the top it stays at the top."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False)
        self._shown: list[TableRow] = []

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, self._recolour)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What Enter does is said, and done, by the view around the table."""
        return False if action == "select_cursor" else super().check_action(action, parameters)

    @property
    def chosen(self) -> str | None:
        """Key of the row under the cursor."""
        row = self.cursor_row
        return self._shown[row].key if 0 <= row < len(self._shown) else None

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Anew; the rows have to be synced again."""
        self.clear(columns=True)
        self._shown = []
        for column in columns:
            label = column.name.rjust(column.width) if column.right else column.name
            self.add_column(label, key=column.name, width=column.width)

    def sync(self, rows: Sequence[TableRow]) -> None:
        if [row.key for row in rows] == [row.key for row in self._shown]:
            self._change_cells(rows)
        elif self._is_continued_by(rows):
            self._change_cells(rows[: len(self._shown)])
            self._append(rows[len(self._shown) :])
        else:
            self._rebuild(rows)
        self._shown = list(rows)

    def _is_continued_by(self, rows: Sequence[TableRow]) -> bool:
        shown = self._shown
        return 0 < len(shown) < len(rows) and all(
            old.key == new.key for old, new in zip(shown, rows, strict=False)
        )

    def _change_cells(self, rows: Sequence[TableRow]) -> None:
        for y, (old, new) in enumerate(zip(self._shown, rows, strict=False)):
            if old is new:
                continue
            for x, (before, after) in enumerate(zip(old.cells, new.cells, strict=True)):
                if before != after:
                    self.update_cell_at(Coordinate(y, x), self._cell(after))

    def _append(self, rows: Sequence[TableRow]) -> None:
        for row in rows:
            self.add_row(*map(self._cell, row.cells), key=row.key)

    def _rebuild(self, rows: Sequence[TableRow]) -> None:
        chosen, cursor = self.chosen, self.cursor_row
        scroll_y = self.scroll_y
        self.clear()
        self._append(rows)
        kept = 0
        if cursor > 0:
            kept = next((y for y, row in enumerate(rows) if row.key == chosen), min(cursor, len(rows) - 1))
        self.move_cursor(row=kept, scroll=False)
        self.scroll_to(y=scroll_y + kept - cursor if cursor > 0 else 0, animate=False, force=True)

    def _recolour(self, _theme: Theme) -> None:
        self._rebuild(self._shown)

    def _cell(self, span: Span) -> Text:
        return palette_of(self).text(span)
