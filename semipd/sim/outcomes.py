"""What became of the requests of a run, and the figures of DESIGN section 6 computed from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semipd.core.percentile import percentile


@dataclass(slots=True)
class Outcome:
    """Times are virtual nanoseconds; `finished_ns` 0: it has not ended. `tokens`: output tokens.
    `missed`: it ended outside its targets, or its first token came too late."""

    at_ns: int
    first_ns: int = 0
    finished_ns: int = 0
    tokens: int = 0
    failed: bool = False
    missed: bool = False
    cached_tokens: int = 0

    @property
    def done(self) -> bool:
        return self.finished_ns > 0 and not self.failed

    @property
    def ttft_ms(self) -> float:
        """From arrival to the first token; infinite if there was none."""
        return (self.first_ns - self.at_ns) / 1e6 if self.first_ns else math.inf

    @property
    def tpot_ms(self) -> float:
        """(last - first) / (tokens - 1); a request of one token passes any target."""
        if not self.done:
            return math.inf
        return (self.finished_ns - self.first_ns) / 1e6 / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def e2e_ms(self) -> float:
        return (self.finished_ns - self.at_ns) / 1e6 if self.done else math.inf

    def meets(self, slo: "Targets") -> bool:
        return self.done and self.ttft_ms <= slo.ttft_ms and self.tpot_ms <= slo.tpot_ms


@dataclass(frozen=True, slots=True)
class Targets:
    """A request counts when both hold for it."""

    ttft_ms: float
    tpot_ms: float

    def __str__(self) -> str:
        return f"{self.ttft_ms:g}/{self.tpot_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds; percentiles over the requests that have the value. `complete` is false when the run
    was given up because it could not reach the wanted attainment any more: latencies are then of those
    that ended before, and the attainment is an upper bound."""

    num_requests: int
    num_failed: int
    complete: bool
    attainment: float
    goodput_per_s: float
    mean_e2e_ms: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    output_tokens: int
    cached_tokens: int


PERCENTILES = (50, 90, 95, 99)


def figures(outcomes: Sequence[Outcome], slo: Targets, duration_s: float, *, complete: bool) -> Figures:
    """`duration_s`: the time in which they arrived. No outcome: attainment 1, goodput 0."""
    done = [outcome for outcome in outcomes if outcome.done]
    met = sum(outcome.meets(slo) for outcome in outcomes)
    missed = sum(outcome.missed for outcome in outcomes)
    e2e = [outcome.e2e_ms for outcome in done]
    return Figures(
        num_requests=len(outcomes),
        num_failed=sum(outcome.failed for outcome in outcomes),
        complete=complete,
        attainment=1.0 - missed / len(outcomes) if outcomes else 1.0,
        goodput_per_s=met / duration_s if duration_s else 0.0,
        mean_e2e_ms=sum(e2e) / len(e2e) if e2e else math.nan,
        ttft_ms=percentiles(o.ttft_ms for o in outcomes if o.first_ns),
        tpot_ms=percentiles(o.tpot_ms for o in done if o.tokens > 1),
        e2e_ms=percentiles(e2e),
        output_tokens=sum(outcome.tokens for outcome in done),
        cached_tokens=sum(outcome.cached_tokens for outcome in outcomes),
    )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Nearest rank, {"mean": ..., "p50": ...}; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    shares = {f"p{pct}": percentile(ordered, pct) for pct in PERCENTILES}
    ranks = {name: value for name, value in shares.items() if value is not None}
    return {"mean": sum(ordered) / len(ordered)} | ranks
