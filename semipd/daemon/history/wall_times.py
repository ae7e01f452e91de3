"""Times of the engine for people: it counts CLOCK_MONOTONIC, they look at clocks on walls."""

from typing import Any

from semipd.system.clock import SYSTEM_CLOCK, Clock


def with_wall_times(data: dict[str, Any], clock: Clock = SYSTEM_CLOCK) -> dict[str, Any]:
    """Replace each `*_at_ns`, at any depth, by `*_at_s`. A time of 0 means the engine's start and becomes
    None."""
    plain: dict[str, Any] = {}
    for name, value in data.items():
        if name == "at_ns" or name.endswith("_at_ns"):
            plain[name.removesuffix("_ns") + "_s"] = clock.wall_s(value) if value else None
        else:
            plain[name] = _of_any(value, clock)
    return plain


def _of_any(value: Any, clock: Clock) -> Any:
    if isinstance(value, list):
        return [_of_any(entry, clock) for entry in value]
    return with_wall_times(value, clock) if isinstance(value, dict) else value
