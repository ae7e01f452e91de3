"""JSON text of large values, written a part at a time: the encoder holds the interpreter until it returns,
and the event loop with it, however it is threaded."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PART_VALUES = 4000
"""In one call of the encoder: about a millisecond."""


@dataclass(frozen=True, slots=True)
class Later:
    """A value that is made when it is written, so that not all of a large answer exists at once."""

    make: Callable[[], object]


def parts_of(value: object) -> list[bytes]:
    """What json.dumps would write, in parts; keys of objects are strings."""
    parts: list[str] = []
    _write(value, parts)
    return [part.encode() for part in parts]


def _write(value: object, parts: list[str]) -> None:
    value = value.make() if isinstance(value, Later) else value
    if isinstance(value, dict):
        _write_members(value.items(), _object, parts)
    elif isinstance(value, list):
        _write_members((("", item) for item in value), _array, parts)
    else:
        parts.append(json.dumps(value))


Members = list[tuple[str, object]]


def _object(members: Members) -> str:
    return json.dumps(dict(members))


def _array(members: Members) -> str:
    return json.dumps([item for _, item in members])


def _write_members(
    members: Iterable[tuple[str, object]], write: Callable[[Members], str], parts: list[str]
) -> None:
    """Small members together, large ones one by one. `write`: a container of some members as text."""
    empty = write([])
    parts.append(empty[0])
    separator, small, room = "", Members(), PART_VALUES
    for name, item in members:
        count = _count(item, PART_VALUES)
        if small and count > room:
            parts.append(separator + write(small)[1:-1])
            separator, small, room = ", ", Members(), PART_VALUES
        if count < PART_VALUES:
            small.append((name, item))
            room -= count
        else:
            # the container with a number in place of the member: all but that number is the text before it
            parts.append(separator + write([(name, 0)])[1:-2])
            separator = ", "
            _write(item, parts)
    if small:
        parts.append(separator + write(small)[1:-1])
    parts.append(empty[1])


def _count(value: object, most: int) -> int:
    """Values in `value`, itself included; counting ends at `most`."""
    if isinstance(value, Later):
        return most
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    total = 1
    for item in inner:
        total += _count(item, most - total)
        if total >= most:
            return most
    return total
