"""Partition control and service levels."""

from typing import Literal, NotRequired, TypedDict

from semipd.core.split import PartitionMode, PolicyName, Units

Phase = Literal["prefill", "decode", "merged"]


class TargetsDocument(TypedDict):
    """What one request is measured by, see core.slo.Targets; 0: no target."""

    ttft_ms: float
    ttft_ms_per_1k_tokens: float
    tpot_ms: float
    itl_ms: float


class SloTargets(TargetsDocument):
    """Of the class `default`, and how they are measured; see core.slo.Slo."""

    itl_percentile: float
    percentile: float
    window_s: float


class Percentiles(TypedDict):
    """Null: no request in the window."""

    p50: float | None
    p90: float | None
    p99: float | None


class Levels(TypedDict):
    """What clients saw in the window, as the daemon measured it. `requests`: judged. `itl_ms`: of each
    request the percentile of its own inter-token times."""

    requests: int
    attainment: float | None
    goodput_rps: float
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles


class ClassLevels(Levels):
    targets: TargetsDocument


class SloState(Levels):
    """Of all requests, and of those of each service class. `targets`: of the class `default`."""

    targets: SloTargets
    classes: dict[str, ClassLevels]


class ObservedLatencies(TypedDict):
    """What the engine has seen in the window: TTFT and TPOT at the targets' percentile, and means. Null:
    nothing yet."""

    ttft_ms: float | None
    tpot_ms: float | None
    mean_tpot_ms: float | None
    mean_output_tokens: float | None
    arrivals_per_s: float


class SloDocument(TypedDict):
    """As the engine tells it."""

    targets: SloTargets
    observed: ObservedLatencies


class SloAnswer(SloState, SloDocument):
    """Answer of GET and PATCH /v1/slo. `observed` is the engine's."""


class ClassAnswer(TypedDict):
    """Answer of the engine to other targets of a class: so many of its requests have them now."""

    requests: int


class _ChangeFacts(TypedDict):
    """`requested`: units asked for, by field; `granted`: the split that holds while both lanes are busy, null
    when the policy chooses or nothing is split; `slo`: the targets from then on, if the change set them."""

    mode: PartitionMode
    actor: str
    reason: str
    requested: dict[str, int]
    granted: Units | None
    rounding: str
    slo: SloTargets | None


class Change(_ChangeFacts):
    """One act of an operator, of expiry, or of the start (`at_s` null)."""

    at_s: float | None
    expires_at_s: float | None
    effective_at_s: float | None


class EngineChange(_ChangeFacts):
    """As the engine tells it."""

    at_ns: int
    expires_at_ns: int | None
    effective_at_ns: int | None


class Forecast(TypedDict):
    """What the work at hand would meet. `split` is empty for merged steps; `reason`: of the policy's choice;
    `late_prompts` and `requests_lost`: under a split or merged steps that an operator asks about."""

    split: Units
    ttft_ms: float | None
    tpot_ms: float | None
    reason: NotRequired[str]
    late_prompts: NotRequired[int]
    requests_lost: NotRequired[int]


class _Outcome(TypedDict):
    dry_run: bool
    forecast: Forecast | None
    takes_effect: str


class ChangeAnswer(Change, _Outcome):
    """Answer of PUT and DELETE /v1/partition. `forecast` is null while step times are not known."""


class EngineChangeAnswer(EngineChange, _Outcome):
    """As the engine tells it."""


class _DecisionFacts(TypedDict):
    """Observed values are null until seen."""

    split: Units
    reason: str
    merged_tokens: int
    predicted_ttft_ms: float | None
    predicted_tpot_ms: float | None
    observed_ttft_ms: float | None
    observed_tpot_ms: float | None


class DecisionRow(_DecisionFacts):
    """A policy's decision and what came of it."""

    at_s: float | None


class EngineDecision(_DecisionFacts):
    """As the engine tells it."""

    at_ns: int


class SharedSplit(TypedDict):
    """What holds while both lanes are busy, and who wants it. `merged_tokens`: budget of merged steps on the
    whole device; 0: the lanes are split."""

    split: Units
    merged_tokens: int
    rule: str
    reason: str


class PhaseModel(TypedDict):
    """How well the step times of a phase are known. `error`: null while they are not trusted."""

    steps: int
    confident: bool
    error: float | None
    correction: float


class Prediction(TypedDict):
    """Errors: running means of |observed / predicted - 1|; null: not known yet."""

    ttft_error: float | None
    tpot_error: float | None
    steps: dict[Phase, PhaseModel]


class MsHistogram(TypedDict):
    """`counts[i]`: values of at most `bounds_ms[i]` and above the bound before; the last: above all."""

    bounds_ms: list[float]
    counts: list[int]
    sum_ms: float
    count: int


class _PartitionFacts(TypedDict):
    """`effective`: the split of the last step; `prefill_duty`: share of decode's busy time with prefill
    beside it; `switch_ms`: from wanting another split to the first step launched under it."""

    mode: PartitionMode
    policy: PolicyName
    shared: SharedSplit
    effective: Units
    prefill_duty: float
    prediction: Prediction
    switch_ms: MsHistogram


class PartitionState(_PartitionFacts):
    """Partition control at one moment. `change`: the act in force; `decision`: the policy's last one."""

    change: Change
    decision: DecisionRow | None


class PartitionStatus(PartitionState):
    """With the service levels as the engine sees them."""

    slo: SloDocument


class _PartitionTable(TypedDict):
    """`possible`: the splits the device offers."""

    unit: str
    num_units: int
    possible: list[Units]


class PartitionDocument(PartitionStatus, _PartitionTable):
    """Answer of GET /v1/partition: also the table, the changes and the decisions, newest last."""

    history: list[Change]
    decisions: list[DecisionRow]


class EnginePartition(_PartitionFacts):
    """As the engine tells it."""

    change: EngineChange
    decision: EngineDecision | None
    slo: SloDocument


class EnginePartitionDocument(EnginePartition, _PartitionTable):
    """As the engine tells it."""

    history: list[EngineChange]
    decisions: list[EngineDecision]
