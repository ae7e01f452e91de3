"""Which policy serves how much: the runs of a comparison, spread over processes, and what they found."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from semipd.core.slo import Targets
from semipd.sim.cases import Cache, Case
from semipd.sim.search import LOWEST_RATE, RateGrid, best_of

WANTED = 0.9
"""Attainment that a rate must keep."""

FAMILIES = ("prefill-first", "chunked", "fixed", "paper", "predictive", "1p1d")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workload:
    """`paper_slo`: what semi-PD (arXiv 2504.19867, section 7, Llama3-8B, the tight ones) asks of a load
    like this: its ShareGPT targets, or its LongBench ones where prompts are long. `first_rate`: where
    the search begins."""

    name: str
    file: str
    form: str
    paper_slo: Targets
    first_rate: float


SHAREGPT_SLO = Targets(300.0, tpot_ms=150.0)
LONGBENCH_SLO = Targets(2250.0, tpot_ms=130.0)
TIGHT_SLO = Targets(500.0, tpot_ms=25.0)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("azure-code", "azure2023_code_all8819.csv", "azure", SHAREGPT_SLO, 5.0),
        Workload("azure-conv", "azure2023_conv_first5000.csv", "azure", SHAREGPT_SLO, 18.0),
        Workload("sharegpt", "sharegpt_8k_lengths_first5000.csv", "sharegpt", SHAREGPT_SLO, 7.0),
        Workload("mooncake", "mooncake_conversation_first3000.jsonl", "mooncake", LONGBENCH_SLO, 1.0),
    )
}


BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
SPLITS = (16, 24, 32, 40, 48, 64, 80)
RATE_FRACS = (0.3, 0.6, 0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare, and how closely. `step`: resolution of rates. `coarse`: width, in steps, to which
    the losing members of a family are known. `base`: the case without trace, policy, rate and targets.
    `variant_window_s`: window of the searches in changed worlds, which compare policies and set no record."""

    traces: Path
    cache: Path
    base: Case
    workloads: tuple[str, ...]
    slos: tuple[str, ...] = ("paper", "tight")
    budgets: tuple[int, ...] = BUDGETS
    splits: tuple[int, ...] = SPLITS
    step: float = 0.01
    coarse: int = 10
    jobs: int = 2
    rate_fracs: tuple[float, ...] = RATE_FRACS
    variant_window_s: float = 200.0

    def case(self, workload: str, slo: str) -> Case:
        load = WORKLOADS[workload]
        targets = TIGHT_SLO if slo == "tight" else load.paper_slo
        assert targets.ttft_ms is not None
        assert targets.tpot_ms is not None
        path = str(self.traces / load.file)
        return replace(
            self.base, trace=path, form=load.form, ttft_ms=targets.ttft_ms, tpot_ms=targets.tpot_ms
        )

    def members(self, family: str) -> list[str]:
        """Middle first: it narrows the search for the others."""
        values = {"chunked": self.budgets, "fixed": self.splits}.get(family)
        if values is None:
            return [family]
        middle = (len(values) - 1) / 2
        order = sorted(range(len(values)), key=lambda idx: abs(idx - middle))
        return [f"{family}:{values[idx]}" for idx in order]


@dataclass(slots=True)
class Finding:
    """A member's highest rate (requests per second and GPU): kept at `rate`, lost at `lost_at`."""

    rate: float
    lost_at: float


@dataclass(slots=True)
class Comparison:
    """`highest`: by (workload, slo, family, member). `at_rates`: by (workload, slo, family), runs at given
    rates: {rate, mean_e2e_ms, attainment, ...}. `variants`: highest rates again, in a changed world."""

    plan: Plan
    highest: dict[tuple[str, str, str], dict[str, Finding]] = field(default_factory=dict)
    at_rates: dict[tuple[str, str, str], list[dict[str, Any]]] = field(default_factory=dict)
    variants: dict[tuple[str, str, str], dict[str, Finding]] = field(default_factory=dict)

    def best(self, workload: str, slo: str, family: str) -> tuple[str, Finding]:
        """The family's best member on this workload."""
        found = self.highest[workload, slo, family]
        return max(found.items(), key=lambda item: item[1].rate)

    def mean_ratio(self, family: str, member: str) -> float:
        """Geometric mean over workloads and targets of predictive's rate over the member's, where one of
        them has any. The member is taken at its upper bound: where the search stopped early, it might be
        that good."""
        logs = [0.0]
        for (workload, slo, found_family), found in self.highest.items():
            ours = self.best(workload, slo, "predictive")[1].rate
            if found_family == family and (ours or found[member].rate):
                theirs = found[member].lost_at / (1.0 + self.plan.step)
                logs.append(math.log(max(ours, LOWEST_RATE) / theirs))
        return math.exp(sum(logs) / max(len(logs) - 1, 1))


Say = Callable[[str], None]


def compare(plan: Plan, variants: Iterable[tuple[str, dict[str, Any]]], say: Say) -> Comparison:
    """All searches, then the runs at given rates, then the searches in changed worlds (`variants`: name,
    fields of Case). What the cache holds is not run again."""
    comparison = Comparison(plan)
    with ProcessPoolExecutor(plan.jobs, mp_context=get_context("spawn")) as pool:
        searches = {
            (workload, slo, family): pool.submit(search_family, plan, workload, slo, family, {})
            # the families with many members take longest: first
            for family in sorted(FAMILIES, key=lambda family: -len(plan.members(family)))
            for workload in plan.workloads
            for slo in plan.slos
        }
        comparison.highest = _gather(searches, "search", say)
        runs = {
            key: pool.submit(run_at_rates, plan, key[0], key[1], *rates)
            for key, rates in _given_rates(comparison)
        }
        comparison.at_rates = _gather(runs, "rates", say)
        again = {
            (workload, name, family): pool.submit(
                search_family, plan, workload, plan.slos[-1], family, in_world, tuned, found.rate
            )
            for name, changes in variants
            for in_world in [changes | {"window_s": plan.variant_window_s}]
            for workload in plan.workloads
            for family in ("chunked", "fixed", "paper", "predictive")
            for tuned, found in [comparison.best(workload, plan.slos[-1], family)]
        }
        comparison.variants = _gather(again, "variant", say)
    return comparison


def search_family(
    plan: Plan,
    workload: str,
    slo: str,
    family: str,
    changes: dict[str, Any],
    only: str = "",
    first_rate: float = 0.0,
) -> dict[str, Finding]:
    """Highest rates of a family's members, or of one of them, looked for around `first_rate` (0: the
    workload's). Runs in a worker process."""
    case, cache, grid = replace(plan.case(workload, slo), **changes), Cache(plan.cache), RateGrid(plan.step)

    def passes(policy: str, rate: float) -> bool:
        result = cache.run(replace(case, policy=policy, rate=rate, stop_below=WANTED))
        return result.figures.complete

    members = [only] if only else plan.members(family)
    start = grid.at(first_rate or WORKLOADS[workload].first_rate)
    found = best_of(members, passes, grid, start, plan.coarse)
    return {policy: Finding(grid.rate(b.low), grid.rate(b.high)) for policy, b in found.items()}


def run_at_rates(
    plan: Plan, workload: str, slo: str, policy: str, rates: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Whole runs, never given up. Runs in a worker process."""
    case, cache = plan.case(workload, slo), Cache(plan.cache)
    rows = []
    for rate in rates:
        result = cache.run(replace(case, policy=policy, rate=rate))
        found = result.figures
        rows.append(
            {
                "rate": rate,
                "policy": policy,
                "mean_e2e_ms": found.mean_e2e_ms,
                "attainment": found.attainment,
                "goodput_per_s": found.goodput_per_s,
                "ttft_p90_ms": found.ttft_ms.get("p90", math.nan),
                "tpot_p90_ms": found.tpot_ms.get("p90", math.nan),
                "split_held_s": result.split_held_s,
            }
        )
    return rows


def _given_rates(
    comparison: Comparison,
) -> Iterable[tuple[tuple[str, str, str], tuple[str, tuple[float, ...]]]]:
    """Shares of the tuned chunked baseline's highest rate (under the kinder targets), for each family at
    its best member under the last targets."""
    plan = comparison.plan
    for workload, slo, family in comparison.highest:
        if slo == plan.slos[-1]:
            reference = max(comparison.best(workload, any_slo, "chunked")[1].rate for any_slo in plan.slos)
            rates = tuple(round(reference * frac, 3) for frac in plan.rate_fracs if reference)
            yield (workload, slo, family), (comparison.best(workload, slo, family)[0], rates)


def _gather(futures: dict[tuple[str, str, str], "Future[T]"], what: str, say: Say) -> dict[Any, T]:
    """Results in the order of the tasks, with a line for each as it comes."""
    names, began_s = {future: key for key, future in futures.items()}, time.monotonic()
    for count, future in enumerate(as_completed(names), 1):
        future.result()
        name = ", ".join(names[future])
        say(f"[{time.monotonic() - began_s:7.1f} s] {what} {count}/{len(names)}: {name}")
    return {key: future.result() for key, future in futures.items()}
