"""What plain data looks like: its keys and the kinds of its values, at any depth."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from semipd.core.events import EventRow

Shape = dict[str, set[str]]
"""Kinds by path; `a.b` is a key, `a[]` any entry of a list."""


def shape_of(values: Iterable[Any], free: Collection[str] = ()) -> Shape:
    """Of all values together. Maps at the paths `free` may have any keys."""
    shape: Shape = {}
    for value in values:
        for path, kind in _kinds(value, "", free):
            shape.setdefault(path, set()).add(kind)
    return shape


def differences(shape: Shape, model: Shape) -> list[str]:
    """In what `shape` is not like `model`. What the model never had a value for may be anything, with all
    that lies below; everything may be null."""
    open_paths = {path for path, kinds in model.items() if kinds <= {"null", "empty list"}}
    found = [
        f"{path}: {', '.join(sorted(kinds))}; not {', '.join(sorted(model.get(path, {'there'})))}"
        for path, kinds in shape.items()
        if not _is_below(path, open_paths) and not kinds <= model.get(path, set()) | {"null", "empty list"}
    ]
    closed = {path for path, kinds in shape.items() if kinds <= {"null", "empty list"}}
    missing = [path for path in model if path not in shape and not _is_below(path, closed)]
    return found + [f"{path} is missing" for path in missing]


def _is_below(path: str, parents: Collection[str]) -> bool:
    return any(path == parent or path.startswith((f"{parent}.", f"{parent}[]")) for parent in parents)


def _kinds(value: Any, path: str, free: Collection[str]) -> Iterator[tuple[str, str]]:
    match value:
        case None:
            yield path, "null"
        case bool():
            yield path, "bool"
        case int() | float():
            yield path, "number"
        case str():
            yield path, "text"
        case dict():
            yield path, "map"
            if path not in free:
                for key, entry in value.items():
                    yield from _kinds(entry, f"{path}.{key}" if path else str(key), free)
        case list() | tuple():
            yield path, "list" if value else "empty list"
            for entry in value:
                yield from _kinds(entry, f"{path}[]", free)
        case _:
            raise TypeError(f"{path}: {type(value)}")


def by_kind(events: Iterable[EventRow]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for event in events:
        found.setdefault(event["kind"], []).append(event)
    return found
