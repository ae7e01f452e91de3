"""What the daemon tells of itself and of its engine: the state frame of subscribers, and /v1/status."""

from typing import Literal, TypedDict, final

from semipd.core.events import DrainStage, SplitChanged
from semipd.core.request import Priority, RequestStage
from semipd.core.split import LaneName
from semipd.core.state.device import DeviceFacts, DeviceState
from semipd.core.state.engine import EngineNumbers, KvPool, LaneDocument, PrefixState, SplitNow
from semipd.core.state.partition import PartitionState, PartitionStatus, SloState

EngineStage = Literal["starting", "ready", "restarting", "failed", "stopping"]
"""`restarting`: another engine is started after one has died; `failed`: that was given up."""


class KvHolder(TypedDict):
    id: str
    state: RequestStage
    blocks: int
    tokens: int
    priority: Priority


class KvState(KvPool):
    """`holders`: the requests with the most blocks."""

    holders: list[KvHolder]


class RequestsState(TypedDict):
    """`background`: see RequestNumbers; `live`: between arrival and last byte; `held`: while there is no
    engine; `suspects`: retried alone after an engine's death; `totals`: ended ones by reason, and `admitted`.
    Null: no engine answers."""

    waiting: int | None
    background: int | None
    prefilling: int | None
    decoding: int | None
    oldest_waiting_ms: float | None
    live: int
    held: int
    suspects: int
    totals: dict[str, int]


class StartPhase(TypedDict):
    """What a start waits for; it may stand still for `limit_s`."""

    name: str
    seconds: float
    limit_s: float


class EngineState(TypedDict):
    """`pid` of the process there is; `phase` while one starts, `why` and `attempt` while it is replaced,
    `why` and `hint` when it was given up."""

    state: EngineStage
    pid: int | None
    phase: StartPhase | None
    attempt: int | None
    backoff_left_s: float | None
    why: str | None
    hint: str | None
    restarts: int


class ModelState(TypedDict):
    """`max_model_len`: prompt and output, in tokens; null until the engine is ready."""

    name: str
    max_model_len: int | None


class VersionsState(TypedDict):
    daemon: str
    engine: str | None


class DrainState(TypedDict):
    """`awaited`: requests under way; `ended`: how many the deadline has ended."""

    state: DrainStage
    awaited: int
    oldest_ms: float | None
    seconds_left: float | None
    ended: int
    actor: str | None
    reason: str | None


class Throughput(TypedDict):
    """Over the last seconds."""

    prompt_tokens_per_s: float
    output_tokens_per_s: float


class ProcessHealth(TypedDict):
    ok: bool


class LoopHealth(ProcessHealth):
    event_loop_lag_ms: float
    engine_answer_ms: float | None


class ProgressHealth(ProcessHealth):
    """`age_ms`: of the slowest step in flight; 0 without work, null: nobody knows."""

    age_ms: float | None


class Indicators(TypedDict):
    """Three separate facts: the engine process is up; both loops turn; work moves forward."""

    process: ProcessHealth
    loop: LoopHealth
    progress: ProgressHealth


def health(indicators: Indicators) -> tuple[tuple[str, bool], ...]:
    """Name and verdict of each indicator."""
    return (
        ("process", indicators["process"]["ok"]),
        ("loop", indicators["loop"]["ok"]),
        ("progress", indicators["progress"]["ok"]),
    )


class LastSplitChange(SplitChanged):
    at_s: float


class StateDocument(TypedDict):
    """The daemon's state at one moment, as subscribers get it. Null: what only the engine knows, while it
    does not answer."""

    at_s: float
    uptime_s: float
    state: EngineStage
    engine: EngineState
    model: ModelState
    versions: VersionsState
    device: DeviceState | None
    split: SplitNow | None
    prefix: PrefixState | None
    preemptions: int | None
    scheduler: str | None
    lanes: dict[LaneName, LaneDocument] | None
    kv: KvState | None
    last_split_change: LastSplitChange | None
    partition: PartitionState | None
    requests: RequestsState
    drain: DrainState
    throughput: Throughput
    slo: SloState
    lamps: Indicators
    refused: dict[str, int]
    notes: list[str]


class StartupPhase(TypedDict):
    name: str
    seconds: float


class AdmissionState(TypedDict):
    """`max_request_share`: of the waiting room, for one request."""

    waiting_requests: int
    waiting_tokens: int
    max_waiting_requests: int
    max_waiting_tokens: int
    max_request_share: float
    completed_per_s: float | None


class RenderingState(TypedDict):
    """Conversations that chat templates turn into prompts."""

    rendering: int
    waiting: int
    max_rendering: int
    max_waiting: int


class _DaemonStatus(TypedDict):
    state: EngineStage
    engine: EngineState
    model: ModelState
    device_info: DeviceFacts | None
    notes: list[str]
    versions: VersionsState
    uptime_s: float
    startup: list[StartupPhase]
    totals: dict[str, int]
    live_requests: int
    ignored_fields: dict[str, int]
    slo: SloState
    admission: AdmissionState
    chat_template: RenderingState
    drain: DrainState


@final
class StatusWithoutEngine(_DaemonStatus):
    """While no engine is ready."""


@final
class StatusWithEngine(_DaemonStatus, EngineNumbers):
    partition: PartitionStatus


Status = StatusWithEngine | StatusWithoutEngine
"""Answer of GET /v1/status."""
