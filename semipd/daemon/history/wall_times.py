"""Times of the engine for people: it counts CLOCK_MONOTONIC, they look at clocks on walls."""

from typing import Any, cast, overload

from semipd.core.state.partition import (
    ChangeAnswer,
    EngineChangeAnswer,
    EnginePartition,
    EnginePartitionDocument,
    PartitionDocument,
    PartitionStatus,
)
from semipd.system.clock import SYSTEM_CLOCK, Clock


@overload
def with_wall_times(document: EnginePartitionDocument, clock: Clock = ...) -> PartitionDocument: ...
@overload
def with_wall_times(document: EnginePartition, clock: Clock = ...) -> PartitionStatus: ...
@overload
def with_wall_times(document: EngineChangeAnswer, clock: Clock = ...) -> ChangeAnswer: ...
def with_wall_times(document: Any, clock: Clock = SYSTEM_CLOCK) -> Any:
    """Replace each `*_at_ns`, at any depth, by `*_at_s`. A time of 0 means the engine's start and becomes
    None."""
    return _of_any(document, clock)


def _of_map(data: dict[str, object], clock: Clock) -> dict[str, object]:
    plain: dict[str, object] = {}
    for name, value in data.items():
        if name == "at_ns" or name.endswith("_at_ns"):
            plain[name.removesuffix("_ns") + "_s"] = clock.wall_s(cast(int, value)) if value else None
        else:
            plain[name] = _of_any(value, clock)
    return plain


def _of_any(value: object, clock: Clock) -> object:
    if isinstance(value, list):
        return [_of_any(entry, clock) for entry in value]
    return _of_map(value, clock) if isinstance(value, dict) else value
