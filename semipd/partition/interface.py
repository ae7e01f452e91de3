"""What a partition policy sees, and what it answers: plain data, so that it can be tested and simulated.

Times are milliseconds unless the name says otherwise; "units" are SMs or cores (`SplitTable.unit`).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from semipd.core.request import SeqId
from semipd.core.slo import Slo
from semipd.core.split import LaneName, PolicyName, Split
from semipd.core.state.partition import ObservedLatencies
from semipd.partition.table import SplitTable


class StepRecord(NamedTuple):
    """One finished step: what it did, on what, how long it took.

    Attributes:
        units: units the step ran on.
        other_units: units of the other lane while it had a step in flight when this one was launched, else 0.
        num_decodes: sequences that advanced by one token.
        context_tokens: KV tokens those sequences read, summed.
        new_tokens: prompt tokens computed.
        attended_tokens: (query, key) pairs of their attention: the sum over chunks of
            length x (start + (length + 1) / 2), where `start` tokens came before the chunk.
        busy_ns: as in StepResult.
    """

    lane: LaneName
    units: int
    other_units: int
    num_decodes: int
    context_tokens: int
    new_tokens: int
    attended_tokens: float
    busy_ns: int


class WaitingPrompt(NamedTuple):
    """A prompt with tokens to compute.

    Attributes:
        prior_tokens: before those: computed, or found as a prefix.
        age_ms: since it arrived.
        due_ms: until its first token is due, negative when it is late; infinite when nothing is lost by
            waiting: no target, the token has come already, or the order computes it in the background.
    """

    new_tokens: int
    prior_tokens: int
    age_ms: float
    due_ms: float = math.inf


class Streams(NamedTuple):
    """Requests that decode and share targets; a list has one entry per request.

    Attributes:
        tpot_ms: mean time per token; None: no target.
        itl_ms: most time between two tokens; None: no target.
        slacks_ms: rising: by how much each is ahead of its due time, first token + tokens since x `tpot_ms`
            (by how much behind, where negative); zeros without `tpot_ms`.
    """

    tpot_ms: float | None
    itl_ms: float | None
    slacks_ms: tuple[float, ...]


class Observed(NamedTuple):
    """The SLO window: None where nothing was seen yet."""

    ttft_ms: float | None = None  # at the SLO's percentile
    tpot_ms: float | None = None  # at the SLO's percentile
    mean_tpot_ms: float | None = None
    mean_output_tokens: float | None = None  # of finished requests with more than one token
    arrivals_per_s: float = 0.0

    def to_plain(self) -> ObservedLatencies:
        return {
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "mean_tpot_ms": self.mean_tpot_ms,
            "mean_output_tokens": self.mean_output_tokens,
            "arrivals_per_s": self.arrivals_per_s,
        }


NOTHING_OBSERVED = Observed()


class ClosedWindow(NamedTuple):
    """What the policy `paper` learns from: one window of finished requests under one split.

    `full_prefill_s` is l_100 of the paper: mean time of a prompt's prefill on the whole device, by Eq. 1.
    """

    split: Split
    ttft_ms: float  # at the SLO's percentile
    tpot_ms: float  # at the SLO's percentile
    arrivals_per_s: float
    full_prefill_s: float


class Line(NamedTuple):
    """Predicted time of a step as a function of its work: what a phase costs on a given number of units."""

    constant_ms: float
    per_token_ms: float
    per_context_ms: float

    def ms(self, tokens: float, context: float) -> float:
        return self.constant_ms + self.per_token_ms * tokens + self.per_context_ms * context


class StepTimes(Protocol):
    """Predicted step times; fitted online (partition.step_times.models)."""

    @property
    def confident(self) -> bool:
        """Both phases have been seen often enough to be trusted."""

    def prefill(self, units: int) -> Line:
        """Of new tokens and attended tokens (see StepRecord)."""

    def decode(self, units: int) -> Line:
        """Of sequences and context tokens."""

    def merged(self, num_decodes: float, context_tokens: float) -> Line:
        """A merged step on the whole device with this decode batch: of new and attended tokens."""

    def smallest_tried(self, lane: LaneName) -> int | None:
        """The smallest number of units on which this lane was seen often enough; None: none yet."""


class Work(NamedTuple):
    """What the engine has at hand: its part of a snapshot, where the fields are explained. `seqs` are those
    of `prompts`."""

    num_decodes: int
    context_tokens: int
    num_joining: int
    joining_tokens: int
    prompts: tuple[WaitingPrompt, ...]
    seqs: tuple[SeqId, ...]
    busy_prefill_ms: float
    streams: tuple[Streams, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The moment of a decision.

    Attributes:
        start: the configured split: what holds until more is known.
        current: the split that holds while both lanes are busy.
        merged_tokens: budget of the merged steps that run at present; 0: the lanes are split.
        num_decodes, context_tokens: the decode batch.
        num_joining, joining_tokens: sequences now prefilling, which will decode next, and their tokens.
        prompts: in the order in which they will be computed: those begun, then the waiting ones. A long
            queue is cut: see engine.work.
        busy_prefill_ms: what is left of the prefill step in flight, as predicted.
        streams: what decodes and has targets for its gaps.
        prefill_duty: share of the decode lane's busy time in which the prefill lane was busy too, over
            the last seconds; 1 when unknown.
        chunk_tokens: most prompt tokens in one prefill step.
        merge_tokens: most tokens in one merged step; 0: merged steps are not allowed.
        windows: the last closed windows, newest last.
    """

    now_ns: int
    table: SplitTable
    start: Split
    current: Split
    times: StepTimes
    num_decodes: int = 0
    context_tokens: int = 0
    num_joining: int = 0
    joining_tokens: int = 0
    prompts: tuple[WaitingPrompt, ...] = ()
    busy_prefill_ms: float = 0.0
    streams: tuple[Streams, ...] = ()
    prefill_duty: float = 1.0
    chunk_tokens: int = 512
    merge_tokens: int = 0
    merged_tokens: int = 0
    observed: Observed = NOTHING_OBSERVED
    windows: tuple[ClosedWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What shall hold while both lanes are busy.

    Attributes:
        split: one of the table's.
        reason: for people, with the numbers.
        merged_tokens: run merged steps with this token budget instead of splitting; 0: split.
        predicted_ttft_ms: of the prompt `watched`; None: no prediction.
        predicted_tpot_ms: a decode step's time under this choice; None: no prediction.
        watched: index in `snapshot.prompts` of the prompt that stands at the SLO's percentile.
    """

    split: Split
    reason: str
    merged_tokens: int = 0
    predicted_ttft_ms: float | None = None
    predicted_tpot_ms: float | None = None
    watched: int | None = None


class Policy(Protocol):
    """Pure: equal snapshots give equal decisions. Called only while both lanes have work."""

    @property
    def name(self) -> PolicyName: ...

    @property
    def per_window(self) -> bool:
        """Decide once per closed window instead of every few milliseconds."""

    def decide(self, snapshot: Snapshot, slo: Slo) -> Decision: ...
