"""Times of the engine for people: it counts CLOCK_MONOTONIC, they look at clocks on walls."""

import time
from typing import Any

_OFFSET_NS = time.time_ns() - time.monotonic_ns()
"""Taken once, so that an event keeps its time however often it is asked for."""


def wall_s(at_ns: int) -> float:
    """Seconds since the epoch."""
    return (at_ns + _OFFSET_NS) / 1e9


def with_wall_times(data: dict[str, Any]) -> dict[str, Any]:
    """Replace each `*_at_ns`, at any depth, by `*_at_s`. A time of 0 means the engine's start and becomes
    None."""
    plain: dict[str, Any] = {}
    for name, value in data.items():
        if name == "at_ns" or name.endswith("_at_ns"):
            plain[name.removesuffix("_ns") + "_s"] = wall_s(value) if value else None
        else:
            plain[name] = _of_any(value)
    return plain


def _of_any(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_any(entry) for entry in value]
    return with_wall_times(value) if isinstance(value, dict) else value
