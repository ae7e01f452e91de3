"""What a device tells of itself."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from semipd.core.split import LaneName, Units


class GpuStats(TypedDict, total=False):
    """Null: this GPU, driver or MIG instance does not tell. `throttled_by`: why the clocks are held down.
    `absent`: why there are no numbers at all."""

    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    power_limit_w: float | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    throttled_by: Sequence[str] | None
    absent: str


class CapabilityDocument(TypedDict):
    """Whether the device can be divided, and if not, why."""

    possible: bool
    reason: str
    notes: list[str]


class SwitchTimes(TypedDict):
    """Host time that moving a lane to another split took."""

    count: int
    last_us: float
    mean_us: float
    max_us: float


class GraphCounts(TypedDict):
    captured: int
    missing: int
    hits: int
    misses: int


class WorkerState(TypedDict):
    """A lane's worker process. `rss_bytes`: shared memory it has touched included."""

    pid: int
    rss_bytes: int
    state: Literal["up", "ending", "starting"]
    restarts: int


class FreeMemory(TypedDict):
    """`source` names the tightest limit."""

    num_bytes: int
    source: str


class DeviceStats(TypedDict, total=False):
    """Numbers of this moment; each kind of device has its own."""

    gpu: GpuStats
    partition: CapabilityDocument
    switches: dict[str, SwitchTimes]
    graphs: GraphCounts
    workers: dict[LaneName, WorkerState]
    memory: dict[str, int]
    available: FreeMemory
    simulated: bool
    model: str


class DeviceState(TypedDict):
    """Facts of the device; `memory` by use, in bytes; `stats`: null while the engine does not answer."""

    kind: str
    name: str
    unit: str
    num_units: int
    dtype: str
    memory: dict[str, int]
    stats: DeviceStats | None


class DeviceFacts(TypedDict):
    """See devices.contract.DeviceInfo."""

    kind: str
    name: str
    unit: str
    num_units: int
    splits: list[Units]
    solo_prefill: Units
    solo_decode: Units
    num_blocks: int
    block_size: int
    vocab_size: int
    max_model_len: int
    dtype: str
    memory: dict[str, int]
    max_step_tokens: int
    max_decode_tokens: int
    prefill_moves: bool
