"""Times of the engine for people: it counts CLOCK_MONOTONIC, they look at clocks on walls."""

import time
from typing import Any


def with_wall_times(data: dict[str, Any]) -> dict[str, Any]:
    """Replace each `*_at_ns` (CLOCK_MONOTONIC), at any depth, by `*_at_s`, seconds since the epoch. A time of
    0 means the engine's start and becomes None."""
    offset_s = time.time() - time.monotonic()

    def of_map(data: dict[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for name, value in data.items():
            if name == "at_ns" or name.endswith("_at_ns"):
                plain[name.removesuffix("_ns") + "_s"] = value / 1e9 + offset_s if value else None
            else:
                plain[name] = of_any(value)
        return plain

    def of_any(value: Any) -> Any:
        if isinstance(value, list):
            return [of_any(entry) for entry in value]
        return of_map(value) if isinstance(value, dict) else value

    return of_map(data)
