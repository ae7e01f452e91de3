"""The numbers that only the engine knows."""

from typing import TypedDict

from semipd.core.split import LaneName
from semipd.core.state.device import DeviceStats
from semipd.core.state.partition import EnginePartition


class LaneDocument(TypedDict):
    """`last_step_age_ms`: null while it has never finished a step; `step_age_ms`: how long its oldest step in
    flight takes already, null while it has none."""

    steps: int
    slow_steps: int
    steps_in_flight: int
    residents: int
    prefill_tokens: int
    decode_tokens: int
    busy_ms: float
    last_step_age_ms: float | None
    step_age_ms: float | None


class StepSizes(TypedDict):
    """Steps per number of tokens; the last count is above all bounds."""

    bounds: list[int]
    counts: list[int]
    sum_tokens: int


class LaneNumbers(LaneDocument):
    step_sizes: StepSizes


class KvPool(TypedDict):
    """`used` and `free` make up the total. `cached`: free, but what they hold can be reused; `reserved`:
    free, but only for requests that run."""

    block_tokens: int
    total_blocks: int
    used_blocks: int
    free_blocks: int
    cached_blocks: int
    reserved_blocks: int


class SplitNow(TypedDict):
    prefill: int
    decode: int
    unit: str


class PrefixState(TypedDict):
    """Of all prompts admitted: tokens, and those found in the prefix index."""

    prompt_tokens: int
    cached_tokens: int


class RequestNumbers(TypedDict):
    """`background`: prompts that let all pass which can be in time, waiting or begun."""

    waiting: int
    background: int
    prefilling: int
    decoding: int
    oldest_waiting_ms: float | None


class EngineNumbers(TypedDict):
    """`progress_age_ms`: how long the slowest step in flight has been under way; 0 without work."""

    scheduler: str
    split: SplitNow
    requests: RequestNumbers
    kv: KvPool
    prefix: PrefixState
    preemptions: int
    lanes: dict[LaneName, LaneNumbers]
    progress_age_ms: float
    device: DeviceStats


class EngineStatus(EngineNumbers):
    """The engine's answer to GetStatus."""

    partition: EnginePartition
