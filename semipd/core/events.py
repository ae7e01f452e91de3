"""What happens to requests, engine and daemon: the kinds of events, and what each of them tells.

The same event feeds log, status, subscribers and dashboard. The engine makes those of its requests and lanes,
the daemon those that only it sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar, cast

from semipd.core.request import SeqId
from semipd.core.split import LaneName, PartitionMode, Units

EventKind = Literal[
    "arrived",
    "queued",
    "admitted",
    "to_background",
    "from_background",
    "first_token",
    "first_byte",
    "preempted",
    "finished",
    "refused",
    "split_changed",
    "partition_changed",
    "slo_changed",
    "slow_step",
    "worker_died",
    "worker_restarted",
    "engine_died",
    "engine_restarted",
    "request_resumed",
    "drain_changed",
]
FinishReason = Literal["stop", "length", "cancelled", "error"]
BackgroundReason = Literal["no_target", "late"]
DrainStage = Literal["serving", "draining", "stopping", "drained"]
"""`stopping`: the daemon ends when it has drained."""


class Arrived(TypedDict):
    prompt_tokens: int
    max_tokens: int


class Queued(TypedDict):
    prompt_tokens: int


class Admitted(TypedDict):
    """`tokens`: of its history, `cached_tokens` of them found as a prefix."""

    cached_tokens: int
    tokens: int


class ToBackground(TypedDict):
    """It lets all pass that can be in time. `expected_start_ms`: from now until its prompt is begun, unless
    others come; null: not known yet."""

    reason: BackgroundReason
    expected_start_ms: float | None


class FromBackground(TypedDict):
    """It can be in time after all."""


class FirstToken(TypedDict):
    """The engine's first token; nothing else is told."""


class FirstByte(TypedDict):
    ttft_ms: float | None


class Preempted(TypedDict):
    """`tokens_lost` must be computed again; `blocks` were given back."""

    tokens_lost: int
    blocks: int


class RequestFinished(TypedDict):
    """`code`: after an error. The engine, which does not know when tokens leave the daemon, tells no TPOT."""

    reason: FinishReason
    output_tokens: int
    tpot_ms: NotRequired[float | None]
    code: NotRequired[str]


class Refused(TypedDict):
    """`message`: when the engine refused."""

    code: str
    message: NotRequired[str]


SplitChanged = TypedDict(
    "SplitChanged",
    {"from": Units, "to": Units, "rule": str, "reason": str, "switch_ms": float},
)
"""A step was launched under another split, `switch_ms` after that was wanted by `rule`."""


class PartitionChanged(TypedDict):
    """`granted`: empty without a fixed split; `expires_s`: 0 without an end."""

    mode: PartitionMode
    actor: str
    reason: str
    granted: Units
    expires_s: float


class SloChanged(TypedDict):
    """Targets of a service class from then on; 0: none. The last three: of the daemon's service levels, which
    have the class `default`."""

    actor: str
    reason: str
    service_class: str
    ttft_ms: float
    ttft_ms_per_1k_tokens: float
    tpot_ms: float
    itl_ms: float
    itl_percentile: NotRequired[float]
    percentile: NotRequired[float]
    window_s: NotRequired[float]


class SlowStep(TypedDict):
    lane: LaneName
    step_id: int
    busy_ms: float
    predicted_ms: float
    units: int
    new_tokens: int
    num_decodes: int


class WorkerDied(TypedDict):
    """`signal`: empty if none ended it; `step_id`: 0 when it was idle."""

    lane: LaneName
    pid: int
    how: str
    signal: str
    step_id: int


class WorkerRestarted(TypedDict):
    """`seconds`: since the death was noticed."""

    lane: LaneName
    pid: int
    seconds: float


class EngineDied(TypedDict):
    """`in_flight`: requests."""

    why: str
    in_flight: int


class EngineRestarted(TypedDict):
    outage_s: float
    device: str


class RequestResumed(TypedDict):
    """`output_tokens`: generated before."""

    output_tokens: int


class DrainChanged(TypedDict):
    """`awaited`: requests under way; `ended`: at the deadline."""

    state: DrainStage
    actor: str
    reason: str
    limit_s: float
    awaited: int
    ended: int


EventData = (
    Arrived
    | Queued
    | Admitted
    | ToBackground
    | FromBackground
    | FirstToken
    | FirstByte
    | Preempted
    | RequestFinished
    | Refused
    | SplitChanged
    | PartitionChanged
    | SloChanged
    | SlowStep
    | WorkerDied
    | WorkerRestarted
    | EngineDied
    | EngineRestarted
    | RequestResumed
    | DrainChanged
)
D = TypeVar("D")


class Told(NamedTuple):
    """A kind with its data, before it has a time and a request."""

    kind: EventKind
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """As the engine sends it. `at_ns` is CLOCK_MONOTONIC; `Kind.of` reads `data`."""

    at_ns: int
    kind: EventKind
    seq: SeqId | None
    request_id: str
    data: Mapping[str, Any]


class EventRow(TypedDict):
    """As clients get it. `id` orders the events of a daemon's life."""

    id: str
    at_s: float
    kind: EventKind
    request_id: str | None
    data: EventData


@dataclass(frozen=True, slots=True)
class Kind(Generic[D]):
    """Ties the name of a kind to the type of its data."""

    name: EventKind
    data: type[D]

    def __call__(self, data: D) -> Told:
        return Told(self.name, cast(Mapping[str, Any], data))

    def of(self, event: Event) -> D:
        """The data of an event that is of this kind."""
        assert event.kind == self.name, f"{event.kind} is not {self.name}"
        return cast(D, event.data)


ARRIVED = Kind("arrived", Arrived)
QUEUED = Kind("queued", Queued)
ADMITTED = Kind("admitted", Admitted)
TO_BACKGROUND = Kind("to_background", ToBackground)
FROM_BACKGROUND = Kind("from_background", FromBackground)
FIRST_TOKEN = Kind("first_token", FirstToken)
FIRST_BYTE = Kind("first_byte", FirstByte)
PREEMPTED = Kind("preempted", Preempted)
FINISHED = Kind("finished", RequestFinished)
REFUSED = Kind("refused", Refused)
SPLIT_CHANGED = Kind("split_changed", SplitChanged)
PARTITION_CHANGED = Kind("partition_changed", PartitionChanged)
SLO_CHANGED = Kind("slo_changed", SloChanged)
SLOW_STEP = Kind("slow_step", SlowStep)
WORKER_DIED = Kind("worker_died", WorkerDied)
WORKER_RESTARTED = Kind("worker_restarted", WorkerRestarted)
ENGINE_DIED = Kind("engine_died", EngineDied)
ENGINE_RESTARTED = Kind("engine_restarted", EngineRestarted)
REQUEST_RESUMED = Kind("request_resumed", RequestResumed)
DRAIN_CHANGED = Kind("drain_changed", DrainChanged)
