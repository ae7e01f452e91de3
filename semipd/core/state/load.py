"""The load of a daemon as it is recorded: when requests came and how long they were, never what they said."""

from collections.abc import Mapping
from typing import Literal, TypedDict

from semipd.core.state.partition import TargetsDocument

LoadEnd = Literal["stop", "length", "cancelled", "error", "running"]
"""How a sequence ended; `running`: it had not when the recording did, and would have become longer."""


class LoadFacts(TypedDict):
    """What holds for a whole recording. `device`: null until an engine was ready. `block_tokens`: prompt
    tokens behind one id of `hash_ids`. `classes`: their targets; 0: none."""

    model: str
    device: str | None
    block_tokens: int
    classes: Mapping[str, TargetsDocument]


class RecordedRequest(TypedDict):
    """One sequence of a request. `at_s`: Unix time of its arrival. `hash_ids`: an id for each block of the
    prompt, the last one perhaps not full; an id stands for the block and everything before it."""

    at_s: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    service_class: str
    end: LoadEnd


class RecordedRefusal(TypedDict):
    """A request that the daemon refused with this error code: how long it was nobody has found out."""

    at_s: float
    refused: str
    service_class: str
