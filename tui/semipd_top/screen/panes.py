"""The three views. Each is given pictures; only the one on top draws them."""

from collections.abc import Callable
from itertools import islice
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input

from semipd.core.state.requests import RequestRow
from semipd_top.panels.listing import WHICH, Field, Order, Which, chosen_rows, fields_for
from semipd_top.panels.overview import overview
from semipd_top.picture.event_text import Event, describe, style_of
from semipd_top.picture.picture import Picture
from semipd_top.screen.tables import SyncedTable, TableColumn, TableRow
from semipd_top.screen.widgets import LinesWidget
from semipd_top.text.lines import Span, fit, line
from semipd_top.text.numbers import clock

EVENT_ROWS = 500
"""What the events view shows at most: the newest that match."""


class Pane(Vertical):
    """A view. `draw` is called with the newest picture while it is on top, and when it gets there."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.picture: Picture | None = None

    def show(self, picture: Picture) -> None:
        self.picture = picture
        if self.display and self.size.width:
            self.draw(picture)

    def draw(self, picture: Picture) -> None:
        raise NotImplementedError

    def redraw(self) -> None:
        if self.picture is not None:
            self.show(self.picture)

    def on_resize(self, _event: events.Resize) -> None:
        self.redraw()

    def on_show(self, _event: events.Show) -> None:
        self.redraw()


class OverviewPane(Pane):
    """All panels at once. The keys are the application's; here they are shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "app.override", "Override"),
        Binding("a", "app.auto", "Auto"),
        Binding("s", "app.slo", "SLO"),
    ]

    can_focus = True

    def compose(self) -> ComposeResult:
        yield LinesWidget(id="overview-lines")

    def draw(self, picture: Picture) -> None:
        width, height = self.size
        self.query_one(LinesWidget).show(overview(picture, width, height))


class SearchablePane(Pane):
    """A line that says what is shown, a search field that appears on demand, and a table."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", tooltip="only rows in which all words occur"),
        Binding("escape", "end_search", "All again", show=False),
    ]

    def compose(self) -> ComposeResult:
        yield LinesWidget(id=f"{self.id}-summary")
        search = Input(
            placeholder="words that must all occur; Enter keeps them, Esc drops them", compact=True
        )
        search.display = False
        yield search
        yield SyncedTable(id=f"{self.id}-table")

    @property
    def words(self) -> str:
        return self.query_one(Input).value

    @property
    def table(self) -> SyncedTable:
        return self.query_one(SyncedTable)

    def action_search(self) -> None:
        search = self.query_one(Input)
        search.display = True
        search.focus()

    def action_end_search(self) -> None:
        search = self.query_one(Input)
        search.value = ""
        search.display = False
        self.table.focus()

    @on(Input.Changed)
    def _searched(self) -> None:
        self.redraw()

    @on(Input.Submitted)
    def _search_kept(self) -> None:
        self.query_one(Input).display = bool(self.words)
        self.table.focus()

    def summarise(self, *parts: str | Span) -> None:
        self.query_one(LinesWidget).show([fit(line(" ", *parts), self.size.width)])


class RequestsPane(SearchablePane):
    """Live and recent requests."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "which", "Which", tooltip="all requests, live ones, finished ones"),
        Binding(
            "less_than_sign",
            "sort(-1)",
            "Sort",
            key_display="< >",
            tooltip="sort by the column before or behind",
        ),
        Binding("greater_than_sign", "sort(1)", "Sort", show=False),
        Binding("r", "reverse", "Reverse", tooltip="the order, greatest or smallest first"),
        Binding("enter", "app.inspect", "Inspect", tooltip="what has happened to the chosen request"),
        Binding("c", "app.cancel_request", "Cancel", tooltip="cancel the chosen request, after a question"),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.which: Which = "all"
        self.order = Order()
        self._columns: tuple[str, ...] = ()
        self._drawn: tuple[object, ...] = ()

    def draw(self, picture: Picture) -> None:
        wanted = (picture.requests, self.which, self.words, self.order, self.size.width)
        # listings come more seldom than pictures
        if self._drawn[1:] == wanted[1:] and self._drawn[0] is wanted[0]:
            return
        self._drawn = wanted
        fields = self._fields
        names = tuple(map(self._heading, fields))
        if names != self._columns:
            self._columns = names
            self.table.set_columns(
                [
                    TableColumn(name, field.width, field.numeric)
                    for name, field in zip(names, fields, strict=True)
                ]
            )
        rows = chosen_rows(picture.requests, self.which, self.words, self.order)
        self.table.sync([TableRow(_key(row), tuple(field.show(row) for field in fields)) for row in rows])
        sort = f"by {self.order.column}" if self.order.column else "live first, newest first"
        self.summarise(
            Span(f"{len(rows)} of {len(picture.requests)} requests", "strong"),
            f": {self.which}, {sort}",
            f", matching '{self.words}'" if self.words else "",
        )

    def chosen(self) -> RequestRow | None:
        """The request under the cursor."""
        key = self.table.chosen
        rows = self.picture.requests if self.picture is not None else ()
        return next((row for row in rows if _key(row) == key), None)

    def action_which(self) -> None:
        self.which = WHICH[(WHICH.index(self.which) + 1) % len(WHICH)]
        self.redraw()

    def action_sort(self, step: int) -> None:
        names = ["", *(field.name for field in self._fields)]
        at = names.index(self.order.column) if self.order.column in names else 0
        column = names[(at + step) % len(names)]
        self.order = Order(column, reverse=bool(column))
        self.redraw()

    def action_reverse(self) -> None:
        if self.order.column:
            self.order = self.order._replace(reverse=not self.order.reverse)
        self.redraw()

    @on(SyncedTable.HeaderSelected)
    def _sort_by(self, event: SyncedTable.HeaderSelected) -> None:
        self.order = self.order.toggled(self._fields[event.column_index].name)
        self.redraw()

    @property
    def _fields(self) -> tuple[Field, ...]:
        return fields_for(self.size.width - self.table.styles.scrollbar_size_vertical)

    def _heading(self, field: Field) -> str:
        """The mark is never cut off."""
        if field.name != self.order.column:
            return field.name
        return f"{field.name:.{field.width - 1}}{'▼' if self.order.reverse else '▲'}"


class EventsPane(SearchablePane):
    """What has happened: what an operator wants to see, or everything. Newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "all_kinds", "All kinds", tooltip="also what every request has"),
        Binding("enter", "app.read_event", "Read", tooltip="the chosen event in full"),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.all_kinds = False
        self._width = 0
        self._found: list[Event] = []

    def draw(self, picture: Picture) -> None:
        if self._width != self.size.width:
            self._width = self.size.width
            self.table.set_columns(
                [
                    TableColumn("time", 8),
                    TableColumn("event", 17),
                    TableColumn("request", 8),
                    TableColumn("what", max(self._width - 43, 30)),
                ]
            )
        kept = picture.events if self.all_kinds else picture.notable
        found = list(islice(filter(self._matches(), reversed(kept)), EVENT_ROWS))
        self._found = found
        self.table.sync([_event_row(event) for event in found])
        kinds = "all kinds" if self.all_kinds else "without what every request has"
        lost = f", {picture.lost} lost" if picture.lost else ""
        self.summarise(
            Span(f"{len(found)} event{'s' * (len(found) != 1)}", "strong"),
            f" of {len(kept)} kept, newest first, {kinds}",
            Span(lost, "warn"),
            f", matching '{self.words}'" if self.words else "",
        )

    def chosen(self) -> Event | None:
        """The event under the cursor."""
        row = self.table.cursor_row
        return self._found[row] if 0 <= row < len(self._found) else None

    def action_all_kinds(self) -> None:
        self.all_kinds = not self.all_kinds
        self.redraw()

    def _matches(self) -> Callable[[Event], bool]:
        wanted = self.words.lower().split()

        def matches(event: Event) -> bool:
            text = f"{event['kind']} {event['request_id'] or ''} {describe(event)}".lower() if wanted else ""
            return all(word in text for word in wanted)

        return matches


def _key(row: RequestRow) -> str:
    return str(row["seq"])


def _event_row(event: Event) -> TableRow:
    return TableRow(
        event["id"] or f"{event['kind']}-{event['at_s']}",
        (
            Span(clock(event["at_s"]), "dim"),
            Span(event["kind"].replace("_", " "), style_of(event["kind"])),
            Span(f"{event['request_id'] or '':.8}", "dim"),
            Span(describe(event)),
        ),
    )
