"""Events sorted."""

from collections.abc import Iterable
from typing import Any

from semipd.core.events import EventRow


def by_kind(events: Iterable[EventRow]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for event in events:
        found.setdefault(event["kind"], []).append(event)
    return found
