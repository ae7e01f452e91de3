"""The requests view's rows: pure. Which columns, in which order, which rows."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from semipd.core.state.requests import RequestRow
from semipd_top.text.lines import Span, Style
from semipd_top.text.numbers import count, duration, millis

Which = Literal["all", "live", "finished"]
WHICH: tuple[Which, ...] = ("all", "live", "finished")


class Field(NamedTuple):
    """A column: `key` sorts (None: unknown), `show` is what stands in the cell. `wide`: only where there is
    room."""

    name: str
    width: int
    key: Callable[[RequestRow], Any]
    show: Callable[[RequestRow], Span]
    wide: bool = False
    numeric: bool = True


def _column(
    title: str,
    width: int,
    value: Callable[[RequestRow], float | None],
    text: Callable[[float | None], str] = count,
    *,
    wide: bool = False,
) -> Field:
    return Field(title, width, value, lambda row: Span(f"{text(value(row)):>{width}}"), wide)


_STATES: dict[str, Style] = {
    "waiting": "warn",
    "background": "bad",
    "prefilling": "prefill",
    "decoding": "decode",
}


def shown_state(row: RequestRow) -> str:
    """Waiting is told apart: in the background, it lets all pass that can be in time."""
    return "background" if row["state"] == "waiting" and row["in_background"] else row["state"]


def _class(row: RequestRow) -> str:
    """A daemon of before knows priorities only."""
    return row.get("service_class", row["priority"])


def _state(row: RequestRow) -> Span:
    state = shown_state(row)
    if state != "finished":
        return Span(state, _STATES[state])
    reason = row["error_code"] or row["finish_reason"]
    return Span(reason or "", "bad" if row["error_code"] else "dim")


FIELDS: tuple[Field, ...] = (
    Field("id", 8, lambda row: row["id"], lambda row: Span(f"{row['id']:.8}"), numeric=False),
    Field("state", 10, lambda row: (shown_state(row), row["error_code"] or ""), _state, numeric=False),
    Field("age", 6, lambda row: row["age_ms"], lambda row: Span(f"{duration(row['age_ms'] / 1e3):>6}")),
    _column("prompt", 6, lambda row: row["prompt_tokens"]),
    _column("hit", 5, lambda row: row["cached_tokens"]),
    Field(
        "output",
        9,
        lambda row: row["output_tokens"],
        lambda row: Span(f"{count(row['output_tokens'])}/{count(row['max_tokens'])}".rjust(9)),
    ),
    _column("TTFT", 5, lambda row: row["ttft_ms"], millis),
    _column("TPOT", 5, lambda row: row["tpot_ms"], millis),
    _column("blocks", 6, lambda row: row["blocks"]),
    _column("preempted", 9, lambda row: row["preemptions"], wide=True),
    Field(
        "class",
        11,
        lambda row: _class(row),
        lambda row: Span(f"{_class(row):.11}"),
        wide=True,
        numeric=False,
    ),
    _column("queued", 7, lambda row: row["queue_ms"], millis, wide=True),
    _column("prefill", 7, lambda row: row["prefill_ms"], millis, wide=True),
    Field(
        "key",
        16,
        lambda row: row["key"],
        lambda row: Span(f"{row['key'] or '-':.16}"),
        wide=True,
        numeric=False,
    ),
)

BY_NAME = {field.name: field for field in FIELDS}
COLUMN_GAP = 2
"""Cells that a table leaves between two columns."""


class Order(NamedTuple):
    """`column` empty: as the daemon lists them, live ones first, each newest first."""

    column: str = ""
    reverse: bool = False

    def toggled(self, column: str) -> "Order":
        """By another column, greatest first; the same one again turns it round, then back to the daemon's."""
        if column != self.column:
            return Order(column, reverse=True)
        return Order(column, reverse=False) if self.reverse else Order()


def fields_for(width: int) -> tuple[Field, ...]:
    """Those that are always shown, and of the others what there is room for."""
    room = width - sum(field.width + COLUMN_GAP for field in FIELDS if not field.wide)
    shown: list[Field] = []
    for field in FIELDS:
        if field.wide:
            if room < field.width + COLUMN_GAP:
                continue
            room -= field.width + COLUMN_GAP
        shown.append(field)
    return tuple(shown)


def chosen_rows(rows: Sequence[RequestRow], which: Which, words: str, order: Order) -> list[RequestRow]:
    """Those that match all of `words`, in this order; whose value is unknown come last, whatever it is."""
    wanted = words.lower().split()
    found = [row for row in rows if _is(row, which) and all(word in _searchable(row) for word in wanted)]
    if not order.column:
        return found
    key = BY_NAME[order.column].key
    known = [row for row in found if key(row) is not None]
    return sorted(known, key=key, reverse=order.reverse) + [row for row in found if key(row) is None]


def _is(row: RequestRow, which: Which) -> bool:
    return which == "all" or (row["state"] == "finished") == (which == "finished")


def _searchable(row: RequestRow) -> str:
    named = (
        row["id"],
        shown_state(row),
        row["finish_reason"],
        row["error_code"],
        _class(row),
        row["key"],
    )
    return " ".join(filter(None, named)).lower()
