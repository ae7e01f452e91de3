"""What was changed, what was decided, and how well the predictions held."""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from semipd.core.request import SeqId
from semipd.core.split import PartitionMode, Split
from semipd.core.state.partition import EngineChange, EngineDecision, MsHistogram, SloTargets
from semipd.partition.interface import Decision, StepRecord

KEPT = 128
LOG_EVERY_NS = 1_000_000_000
"""An unchanged decision is logged this often, so that its outcome is known too."""

BUCKETS_MS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
ERROR_GAIN = 0.1


@dataclass(slots=True)
class PartitionChange:
    """One act of an operator, of expiry, or of the start.

    Attributes:
        requested: the units asked for; empty when none were.
        granted: the split that shall hold while both lanes are busy; None: the policy chooses, or no split.
        rounding: what was changed about the request, in words; empty: nothing.
        effective_at_ns: the first step launched under it; None: not yet.
        slo: the targets from then on, if this change set them.
    """

    at_ns: int
    mode: PartitionMode
    actor: str
    reason: str = ""
    requested: dict[str, int] = field(default_factory=dict)
    granted: Split | None = None
    rounding: str = ""
    expires_at_ns: int | None = None
    effective_at_ns: int | None = None
    slo: SloTargets | None = None

    def to_plain(self) -> EngineChange:
        return {
            "at_ns": self.at_ns,
            "mode": self.mode,
            "actor": self.actor,
            "reason": self.reason,
            "requested": self.requested,
            "granted": self.granted,
            "rounding": self.rounding,
            "expires_at_ns": self.expires_at_ns,
            "effective_at_ns": self.effective_at_ns,
            "slo": self.slo,
        }


@dataclass(slots=True)
class SwitchTimeHistogram:
    """`counts[i]`: values of at most `BUCKETS_MS[i]` and above the bound before; the last: above all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_MS) + 1))
    sum_ms: float = 0.0

    def add(self, ms: float) -> None:
        self.counts[bisect_left(BUCKETS_MS, ms)] += 1
        self.sum_ms += ms

    def to_plain(self) -> MsHistogram:
        return {
            "bounds_ms": list(BUCKETS_MS),
            "counts": list(self.counts),
            "sum_ms": self.sum_ms,
            "count": sum(self.counts),
        }


@dataclass(slots=True)
class DecisionOutcome:
    """A decision and what came of it. Observed values are None until seen.

    `observed_tpot_ms`: mean time of the decode steps launched while it held; `observed_ttft_ms`: of the
    prompt whose TTFT was predicted.
    """

    at_ns: int
    decision: Decision
    watched: SeqId | None
    observed_ttft_ms: float | None = None
    num_steps: int = 0
    steps_ms: float = 0.0

    @property
    def observed_tpot_ms(self) -> float | None:
        return self.steps_ms / self.num_steps if self.num_steps else None

    def to_plain(self) -> EngineDecision:
        decision = self.decision
        return {
            "at_ns": self.at_ns,
            "split": decision.split,
            "reason": decision.reason,
            "merged_tokens": decision.merged_tokens,
            "predicted_ttft_ms": decision.predicted_ttft_ms,
            "predicted_tpot_ms": decision.predicted_tpot_ms,
            "observed_ttft_ms": self.observed_ttft_ms,
            "observed_tpot_ms": self.observed_tpot_ms,
        }


class DecisionLog:
    """Bounded logs. `ttft_error` and `tpot_error` are running means of |observed / predicted - 1|."""

    def __init__(self) -> None:
        self.changes: deque[PartitionChange] = deque(maxlen=KEPT)
        self.outcomes: deque[DecisionOutcome] = deque(maxlen=KEPT)
        self.switch_ms = SwitchTimeHistogram()
        self.ttft_error: float | None = None
        self.tpot_error: float | None = None

    def decided(self, now_ns: int, decision: Decision, watched: SeqId | None) -> None:
        """Log it if it changes something, or if the last entry is old."""
        if self.outcomes:
            last = self.outcomes[-1]
            same = (last.decision.split, last.decision.merged_tokens) == (
                decision.split,
                decision.merged_tokens,
            )
            if same and now_ns - last.at_ns < LOG_EVERY_NS:
                return
            self._close(last)
        self.outcomes.append(DecisionOutcome(now_ns, decision, watched))

    def step(self, record: StepRecord) -> None:
        """A finished step; counts if it is one of those that the last decision is about."""
        if not self.outcomes or not record.num_decodes:
            return
        last = self.outcomes[-1]
        if last.decision.merged_tokens:
            belongs = record.new_tokens > 0
        else:
            belongs = record.units == last.decision.split.decode_units
        if belongs:
            last.num_steps += 1
            last.steps_ms += record.busy_ns / 1e6

    def first_token(self, seq: SeqId, ttft_ms: float) -> None:
        """Complete the decision that predicted this prompt's TTFT, if it is one of the last few."""
        for idx in range(len(self.outcomes) - 1, max(len(self.outcomes) - 5, -1), -1):
            outcome = self.outcomes[idx]
            if outcome.watched == seq:
                outcome.observed_ttft_ms = ttft_ms
                predicted = outcome.decision.predicted_ttft_ms
                self.ttft_error = _mean_error(self.ttft_error, predicted, ttft_ms)
                return

    def _close(self, outcome: DecisionOutcome) -> None:
        self.tpot_error = _mean_error(
            self.tpot_error, outcome.decision.predicted_tpot_ms, outcome.observed_tpot_ms
        )


def _mean_error(mean: float | None, predicted: float | None, observed: float | None) -> float | None:
    if not predicted or observed is None:
        return mean
    error = abs(observed / predicted - 1)
    return error if mean is None else mean + ERROR_GAIN * (error - mean)
