"""Plain data as what has changed about it: state frames and listed requests mostly repeat themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from semipd.core.state.requests import RequestRow

Change = list[Any]
"""[path, value]: what stands there now; the path is a list of keys."""

Row = Mapping[str, Any]
Rows = dict[str, Any]
"""A listing of requests told by the one before: `new` rows, `changed` fields by `seq`, and the `order`."""


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What makes `after` of `before`. A map whose keys are others than before is told as a whole."""
    if before.keys() != after.keys():
        return [[[], after]]
    return list(_changes(before, after, []))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: list[str]) -> Iterator[Change]:
    for key, value in after.items():
        was = before[key]
        if isinstance(was, dict) and isinstance(value, dict) and was.keys() == value.keys():
            yield from _changes(was, value, [*path, key])
        elif was != value:
            yield [[*path, key], value]


def changed(before: Mapping[str, Any], told: Sequence[Change]) -> Mapping[str, Any]:
    """The other way round. Shares with `before` what is equal. Raises KeyError, TypeError, ValueError or
    IndexError when `told` is not about `before`."""
    after = before
    for path, value in told:
        after = _with(after, path, value)
    return after


def _with(before: Mapping[str, Any], path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    key, *rest = path
    return {**before, key: _with(before[key], rest, value)}


def row_changes(before: Mapping[int, Row], rows: Sequence[Row]) -> Rows:
    """`before`: the rows of the listing before, by `seq`, in its order."""
    new: list[Row] = []
    differing: list[list[Any]] = []
    for row in rows:
        was = before.get(row["seq"])
        if was is None or was.keys() != row.keys():
            new.append(row)
        elif fields := {name: value for name, value in row.items() if value != was[name]}:
            differing.append([row["seq"], fields])
    return {"new": new, "changed": differing, "order": _order(list(before), [row["seq"] for row in rows])}


def changed_rows(before: Mapping[int, Row], told: Rows) -> list[RequestRow]:
    """The other way round. Raises as `changed` does."""
    rows = {seq: dict(row) for seq, row in before.items()}
    rows |= {row["seq"]: row for row in told["new"]}
    for seq, fields in told["changed"]:
        rows[seq] |= fields
    seqs = list(before)
    ordered: list[int] = []
    for entry in told["order"]:
        ordered += seqs[entry[0] : entry[1]] if isinstance(entry, list) else [entry]
    return [cast(RequestRow, rows[seq]) for seq in ordered]


def _order(before: Sequence[int], after: Sequence[int]) -> list[int | list[int]]:
    """Numbers, and pieces [start, end) of the order before."""
    places = {seq: idx for idx, seq in enumerate(before)}
    told: list[int | list[int]] = []
    for seq in after:
        place, last = places.get(seq), told[-1] if told else None
        if place is None:
            told.append(seq)
        elif isinstance(last, list) and last[1] == place:
            last[1] = place + 1
        else:
            told.append([place, place + 1])
    return told
