"""What became of the requests of a run, and the figures of DESIGN section 6 computed from it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from semipd.core.percentile import percentile
from semipd.core.request import Request
from semipd.core.slo import DEFAULT_CLASS, ITL_PERCENTILE, NO_TARGETS, Targets, most_slow_gaps


@dataclass(slots=True)
class Outcome:
    """Times are virtual nanoseconds; `finished_ns` 0: it has not ended. `tokens`: output tokens.
    `missed`: it ended outside its targets, or its first token came too late. `error`: code of the refusal or
    failure it ended with. `num_slow_gaps`: its inter-token
    times above `targets.itl_ms`; tokens that come together have one gap before them and none between.
    `itl_percentile`: of its inter-token times, held against that target."""

    at_ns: int
    first_ns: int = 0
    finished_ns: int = 0
    tokens: int = 0
    failed: bool = False
    error: str = ""
    missed: bool = False
    cached_tokens: int = 0
    service_class: str = DEFAULT_CLASS
    targets: Targets = NO_TARGETS
    prompt_tokens: int = 0
    last_ns: int = 0
    num_slow_gaps: int = 0
    itl_percentile: float = ITL_PERCENTILE

    @classmethod
    def of(cls, request: Request, itl_percentile: float = ITL_PERCENTILE) -> "Outcome":
        """Of a request that has just arrived."""
        return cls(
            request.arrival_ns,
            service_class=request.service_class,
            targets=request.targets,
            prompt_tokens=len(request.prompt),
            itl_percentile=itl_percentile,
        )

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

    @property
    def is_late(self) -> bool:
        """Its first token came too late, or is not there. Exact once `cached_tokens` is known; before that it
        may be false too often, never true."""
        return self.ttft_ms > self.targets.ttft_limit_ms(self.prompt_tokens - self.cached_tokens)

    @property
    def met(self) -> bool:
        """It ended well, within every target of its own."""
        tpot_ms = math.inf if self.targets.tpot_ms is None else self.targets.tpot_ms
        return self.done and not self.is_late and self.tpot_ms <= tpot_ms and not self.has_slow_gaps

    @property
    def has_slow_gaps(self) -> bool:
        """Too many of its inter-token times exceed the target."""
        return self.num_slow_gaps > most_slow_gaps(max(self.tokens - 1, 0), self.itl_percentile)

    def first_token(self, now_ns: int) -> None:
        self.first_ns = self.last_ns = now_ns
        self.tokens = 1

    def next_tokens(self, times_ns: list[int]) -> None:
        """Those after the first, and when each came; at least one. Without a target nothing is measured."""
        self.tokens += len(times_ns)
        itl_ms = self.targets.itl_ms
        if itl_ms is not None:
            before_ns = [self.last_ns, *times_ns]
            self.num_slow_gaps += sum([b - a > itl_ms * 1e6 for a, b in zip(before_ns, times_ns)])  # noqa: B905
            self.last_ns = times_ns[-1]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of the requests of one class; see Figures. `num_late`: ended well, but after their TTFT target."""

    num_requests: int
    attainment: float
    goodput_per_s: float
    ttft_ms: dict[str, float]
    num_late: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds; percentiles over the requests that have the value. `goodput_per_s` is per GPU. `complete`
    is false when the run was given up because it could not reach the wanted attainment any more: latencies
    are then of those that ended before, and the attainment is an upper bound. `half_attainments`: of those
    that arrived in the first and in the second half of the window. `errors`: refused or failed, by code."""

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
    half_attainments: tuple[float, float]
    errors: dict[str, int]
    by_class: dict[str, ClassFigures]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Figures":
        by_class = {name: ClassFigures(**row) for name, row in data["by_class"].items()}
        halves = tuple(data["half_attainments"])
        return cls(**(data | {"by_class": by_class, "half_attainments": halves}))

    @property
    def worst_attainment(self) -> float:
        """Of the class that fares worst."""
        return min([row.attainment for row in self.by_class.values()], default=1.0)


PERCENTILES = (50, 90, 95, 99)


def figures(outcomes: Sequence[Outcome], window_s: float, *, complete: bool, num_gpus: int = 1) -> Figures:
    """Each outcome is judged by its own targets. `window_s`: the time in which they arrived. No outcome:
    attainment 1, goodput 0."""
    gpu_s, half_ns = window_s * num_gpus, window_s * 5e8
    done = [outcome for outcome in outcomes if outcome.done]
    met = sum(outcome.met for outcome in outcomes)
    e2e = [outcome.e2e_ms for outcome in done]
    return Figures(
        num_requests=len(outcomes),
        num_failed=sum(outcome.failed for outcome in outcomes),
        complete=complete,
        attainment=attainment(outcomes),
        goodput_per_s=met / gpu_s if gpu_s else 0.0,
        mean_e2e_ms=sum(e2e) / len(e2e) if e2e else math.nan,
        ttft_ms=percentiles(o.ttft_ms for o in outcomes if o.first_ns),
        tpot_ms=percentiles(o.tpot_ms for o in done if o.tokens > 1),
        e2e_ms=percentiles(e2e),
        output_tokens=sum(outcome.tokens for outcome in done),
        cached_tokens=sum(outcome.cached_tokens for outcome in outcomes),
        half_attainments=(
            attainment([o for o in outcomes if o.at_ns < half_ns]),
            attainment([o for o in outcomes if o.at_ns >= half_ns]),
        ),
        errors=_errors(outcomes),
        by_class=_by_class(outcomes, gpu_s),
    )


def attainment(outcomes: Sequence[Outcome]) -> float:
    """Share of all that has not missed; 1 of nobody."""
    return 1.0 - sum([outcome.missed for outcome in outcomes]) / len(outcomes) if outcomes else 1.0


def _errors(outcomes: Iterable[Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.error for outcome in outcomes if outcome.failed))


def _by_class(outcomes: Sequence[Outcome], gpu_s: float) -> dict[str, ClassFigures]:
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(outcome.service_class, []).append(outcome)
    return {
        name: ClassFigures(
            num_requests=len(own),
            attainment=attainment(own),
            goodput_per_s=sum(outcome.met for outcome in own) / gpu_s if gpu_s else 0.0,
            ttft_ms=percentiles(outcome.ttft_ms for outcome in own if outcome.first_ns),
            num_late=sum(outcome.done and outcome.is_late for outcome in own),
            errors=_errors(own),
        )
        for name, own in sorted(members.items())
    }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Nearest rank, {"mean": ..., "p50": ..., "max": ...}; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    shares = {f"p{pct}": percentile(ordered, pct) for pct in PERCENTILES}
    ranks = {name: value for name, value in shares.items() if value is not None}
    return {"mean": sum(ordered) / len(ordered)} | ranks | {"max": ordered[-1]}
