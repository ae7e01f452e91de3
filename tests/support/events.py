"""Events of any kind, also of none that exists."""

from typing import Any, cast

from semipd.core.events import EventKind, Told


def told(kind: str, **data: Any) -> Told:
    return Told(cast(EventKind, kind), data)
