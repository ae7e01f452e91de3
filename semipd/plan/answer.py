"""What the planner has found, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from semipd import __version__
from semipd.plan.question import Question
from semipd.plan.work import STEP, Found, split_shares
from semipd.sim.statistics import Interval, interval

FORMAT = "semipd plan"
VERSION = 1
SHOWN_PERCENTILES = ("p50", "p99")


@dataclass(frozen=True, slots=True)
class Carried:
    """What one GPU keeps within the targets. `rates`: requests per second, by seed; 0: none. At `lost_at` it
    does not. `goodput_per_s`, `ttft_ms` and `tpot_ms`: at those rates, means over the seeds; None and empty:
    there is none. `splits`: shares of the time that each held."""

    gpu: str
    policy: str
    rates: tuple[float, ...]
    lost_at: tuple[float, ...]
    goodput_per_s: float | None
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    splits: dict[str, float]

    @classmethod
    def of(cls, gpu: str, found: Sequence[Found]) -> "Carried":
        figures = [one.result.figures for one in found if one.result is not None]
        held = next((one.result.split_held_s for one in found if one.result is not None), {})
        return cls(
            gpu,
            found[0].policy,
            tuple(one.rate for one in found),
            tuple(one.lost_at for one in found),
            fmean(one.goodput_per_s for one in figures) if figures else None,
            means(one.ttft_ms for one in figures),
            means(one.tpot_ms for one in figures),
            split_shares(held),
        )

    @property
    def rate(self) -> Interval:
        return interval(self.rates)


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many GPUs behind one door, at the rate that was asked for. `attainments`: by seed; None: the run was
    given up, since it could not keep enough any more. `goodput_per_s`: of all together."""

    gpu: str
    policy: str
    num_gpus: int
    rate_per_gpu: float
    attainments: tuple[float | None, ...]
    is_enough: bool
    goodput_per_s: float | None
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]


@dataclass(slots=True)
class Answer:
    """Grows as the simulations end; `is_complete`: nothing is missing."""

    question: Question
    carried: list[Carried] = field(default_factory=list)
    fleets: list[Fleet] = field(default_factory=list)
    is_complete: bool = False

    def needed(self, gpu: str, policy: str) -> int | None:
        """The smallest number of GPUs that was found to be enough, with none smaller left to try."""
        found = {row.num_gpus: row.is_enough for row in self.fleets if (row.gpu, row.policy) == (gpu, policy)}
        enough = [num for num, is_enough in found.items() if is_enough]
        if not enough:
            return None
        least = min(enough)
        is_least = least == self.question.counts.start or found.get(least - 1) is False
        return least if is_least else None

    def to_json(self) -> dict[str, Any]:
        question = self.question
        case = question.case
        return {
            "format": FORMAT,
            "version": VERSION,
            "semipd": __version__,
            "simulated": True,
            "complete": self.is_complete,
            "question": {
                "trace": case.trace,
                "form": case.form,
                "requests": len(question.trace.rows),
                "requests_too_long": question.num_too_long,
                "requests_unserved": question.trace.num_unserved,
                "model": case.model,
                "gpus": list(question.gpus),
                "policies": [family.name for family in question.families],
                "profile": case.profile or "built-in",
                "targets": {one.name: one.targets.to_wire() for one in case.classes},
                "attainment": question.wanted,
                "rate_per_s": question.rate or None,
                "gpu_counts": [question.counts.start, question.counts.stop - 1],
                "seeds": list(question.seeds),
                "window_s": case.window_s,
                "rate_step": STEP,
            },
            "carries": [asdict(row) | {"rate": _bounds(row.rate)} for row in self.carried],
            "fleets": [asdict(row) for row in self.fleets],
            "needed": [
                {"gpu": row.gpu, "policy": row.policy, "num_gpus": self.needed(row.gpu, row.policy)}
                for row in self.carried
                if question.rate
            ],
        }


def _bounds(found: Interval) -> dict[str, float | None]:
    """Bounds of one seed alone are open."""
    is_open = found.high == float("inf")
    low, high = (None, None) if is_open else (max(found.low, 0.0), found.high)
    return {"mean": found.mean, "low": low, "high": high}


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of each percentile that is shown, over the seeds."""
    found = [row for row in rows if row]
    return {name: fmean(row[name] for row in found) for name in SHOWN_PERCENTILES} if found else {}
