"""What a comparison is to do, and how much work that will be."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from semipd.sim.cases import Cache, Case
from semipd.sim.policies import parse_policy
from simlib.scenarios import SCENARIOS, Scenario

BASELINE = "chunked"
"""The column that every other one is compared with: first come, first served, tuned for each scenario."""

COLUMNS = (
    "prefill-first",
    BASELINE,
    "chunked+cost",
    "chunked+deadline",
    "fixed",
    "fixed+deadline",
    "paper",
    "predictive",
    "predictive+deadline",
    "1p1d",
    "2*predictive+deadline",
)

LOADS = (1.0, 1.15, 1.5)
"""Rates of whole runs, relative to the baseline's capacity under the same seed."""

WORLD_SCENARIOS = ("code", "conv", "sharegpt", "agents", "70b")
WORLD_COLUMNS = (BASELINE, "chunked+deadline", "fixed+deadline", "predictive+deadline")

TUNING_SEED = 1000
"""Members of a family are chosen on arrivals of their own, so that nobody's luck is counted twice."""

TUNING_STEP = 0.05
"""Resolution of rates there."""

_TUNING_SIMS, _SEARCH_SIMS = 3.5, 5.0
"""Simulations that a member's or a seed's search takes on average."""

_GIVEN_UP = 0.6
"""Cost of a search's simulation beside a whole one: those above the capacity end early."""

_PROBE_FRAC = 0.03

_COSTS = {"prefill-first": 1.0, "chunked": 1.0, "fixed": 1.2, "paper": 1.4, "predictive": 2.0, "1p1d": 2.0}
"""Processor time beside `chunked`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`base`: the case without workload, policy and rate. `seeds`: of arrivals; every policy sees the same.
    `step`: resolution of capacities. `window_scale`: multiplies the scenarios' windows; `tuning_scale` that
    of the searches for the best member. `worlds`: in which `world_columns` are searched again on
    `world_scenarios`, with the first seed only."""

    traces: Path
    cache: Path
    base: Case
    scenarios: tuple[str, ...]
    columns: tuple[str, ...] = COLUMNS
    seeds: tuple[int, ...] = (1, 2, 3)
    loads: tuple[float, ...] = LOADS
    step: float = 0.02
    window_scale: float = 1.0
    tuning_scale: float = 0.5
    budgets: tuple[int, ...] = ()
    splits: tuple[int, ...] = ()
    worlds: tuple[str, ...] = ()
    world_scenarios: tuple[str, ...] = WORLD_SCENARIOS
    world_columns: tuple[str, ...] = WORLD_COLUMNS
    jobs: int = 2

    def case(self, scenario: Scenario, seed: int, policy: str = "", rate: float = 0.0) -> Case:
        targets = scenario.targets
        assert targets.ttft_ms is not None, f"{scenario.name} has no TTFT target"
        assert targets.tpot_ms is not None, f"{scenario.name} has no TPOT target"
        return replace(
            self.base,
            trace=scenario.trace(self.traces),
            form=scenario.source[1],
            model=scenario.model,
            classes=scenario.classes,
            ttft_ms=targets.ttft_ms,
            ttft_ms_per_1k_tokens=targets.ttft_ms_per_1k_tokens,
            tpot_ms=targets.tpot_ms,
            itl_ms=targets.itl_ms,
            window_s=scenario.window_s * self.window_scale,
            seed=seed,
            policy=policy,
            rate=rate,
        )

    def members(self, scenario: Scenario, column: str) -> list[str]:
        """Policies of a column, the middle one first: it narrows the search for the others."""
        head, kind, order = _split(column)
        budgets, splits = self.budgets or scenario.budgets, self.splits or scenario.splits
        values = {"chunked": budgets, "fixed": splits}.get(kind)
        if values is None:
            return [column]
        middle = (len(values) - 1) / 2
        places = sorted(range(len(values)), key=lambda place: abs(place - middle))
        return [f"{head}{kind}:{values[place]}{order}" for place in places]

    def neighbours(self, scenario: Scenario, column: str, member: str) -> list[str]:
        """The member first, then those with the next smaller and larger value."""
        ordered = sorted(self.members(scenario, column), key=lambda policy: parse_policy(policy).value)
        place = ordered.index(member)
        return [member, *ordered[max(place - 1, 0) : place], *ordered[place + 1 : place + 2]]


def _split(column: str) -> tuple[str, str, str]:
    """(N* or nothing, family, +order or nothing)."""
    found = re.fullmatch(r"(\d+\*)?([^+*]+)(\+\w+)?", column)
    assert found, f"{column!r} is no column"
    return found[1] or "", found[2], found[3] or ""


def family_of(column: str) -> str:
    return _split(column)[1]


def order_of(column: str) -> str:
    """ "+deadline", or nothing for first come, first served."""
    return _split(column)[2]


@dataclass(frozen=True, slots=True)
class Job:
    """A part of the work: so many simulations of so many virtual seconds each."""

    scenario: str
    column: str
    num_sims: float
    virtual_s: float
    cost: float

    @property
    def cpu_s(self) -> float:
        """Of one core."""
        return self.num_sims * self.virtual_s * self.cost


def jobs_of(plan: Plan) -> Iterator[Job]:
    """What `compare` will simulate, if nothing is stored: searches for members, capacities, whole runs."""
    for name in plan.scenarios:
        scenario = SCENARIOS[name]
        window_s = scenario.window_s * plan.window_scale
        cost_s = _cpu_per_virtual_s(plan, scenario)
        for column in plan.columns:
            cost, members = cost_s * _cost_of(column), len(plan.members(scenario, column))
            searches = (members * _TUNING_SIMS * (members > 1), len(plan.seeds) * _SEARCH_SIMS)
            yield Job(name, column, searches[0], window_s * plan.tuning_scale, cost * _GIVEN_UP)
            yield Job(name, column, searches[1], window_s, cost * _GIVEN_UP)
            yield Job(name, column, len(plan.seeds) * len(plan.loads), window_s, cost * _mean(plan.loads))
        if name in plan.world_scenarios:
            for column in plan.world_columns:
                members = min(len(plan.members(scenario, column)), 3)
                num_sims = len(plan.worlds) * members * _SEARCH_SIMS
                yield Job(name, column, num_sims, window_s, cost_s * _cost_of(column) * _GIVEN_UP)


def _cost_of(column: str) -> float:
    head, family, _ = _split(column)
    return _COSTS[family] * int(head.rstrip("*") or 1)


def _cpu_per_virtual_s(plan: Plan, scenario: Scenario) -> float:
    """Of `chunked` near its capacity, measured on a short run, which is stored like any other."""
    members = plan.members(scenario, BASELINE)
    case = plan.case(scenario, TUNING_SEED, members[0], scenario.first_rate)
    short = replace(case, window_s=case.window_s * _PROBE_FRAC)
    return Cache(plan.cache).run(short).cpu_s / short.window_s


def forecast(plan: Plan) -> list[str]:
    """The number of simulations and the processor time, as lines: per scenario and together."""
    by_scenario: dict[str, list[Job]] = {}
    for job in jobs_of(plan):
        by_scenario.setdefault(job.scenario, []).append(job)
    lines = [
        f"{name:16} about {sum(job.num_sims for job in own):5.0f} simulations, {_hours(own)}"
        for name, own in by_scenario.items()
    ]
    everything = [job for own in by_scenario.values() for job in own]
    num_sims = sum(job.num_sims for job in everything)
    lines.append(
        f"{'together':16} about {num_sims:5.0f} simulations, {_hours(everything)}; on {plan.jobs} processes "
        f"{_hours(everything, plan.jobs)}. What is stored in {plan.cache} is not simulated again."
    )
    return lines


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / max(len(values), 1)


def _hours(jobs: list[Job], processes: int = 1) -> str:
    hours = sum(job.cpu_s for job in jobs) / 3600 / processes
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
