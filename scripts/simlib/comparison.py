"""Which policy serves how much: the runs of a comparison, spread over processes, and what they found."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, TypeVar

from semipd.sim.cases import Cache, Case, Result
from semipd.sim.outcomes import Figures
from semipd.sim.search import RateGrid, best_of, bracket
from simlib.plan import BASELINE, TUNING_SEED, TUNING_STEP, Plan
from simlib.scenarios import SCENARIOS

WANTED = 0.9
"""Attainment that a rate must keep, in each class."""

T = TypeVar("T")
Cell = tuple[str, str]
"""(scenario, column)."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A column's best member on a scenario. `rates`: what all its members keep at least; of those that cannot
    be the best it is known to two steps of the grid."""

    member: str
    rates: dict[str, float]

    @property
    def rate(self) -> float:
        return self.rates[self.member]


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run at `load` times the baseline's capacity under the same seed."""

    seed: int
    load: float
    rate: float
    figures: Figures
    num_preemptions: int


@dataclass(slots=True)
class Comparison:
    """`capacity`: by cell, highest rate that keeps the attainment, requests per second and GPU, a value for
    each of the plan's seeds. `runs`: by cell. `worlds`: by (world, scenario, column), with the first seed."""

    plan: Plan
    tuned: dict[Cell, Tuned] = field(default_factory=dict)
    capacity: dict[Cell, list[float]] = field(default_factory=dict)
    runs: dict[Cell, list[Run]] = field(default_factory=dict)
    worlds: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def runs_at(self, scenario: str, column: str, load: float) -> list[Run]:
        """One for each seed; none where the baseline has no capacity."""
        return [run for run in self.runs.get((scenario, column), []) if run.load == load]

    def goodput(self, scenario: str, column: str, load: float) -> list[float]:
        return [run.figures.goodput_per_s for run in self.runs_at(scenario, column, load)]


Say = Callable[[str], None]


def compare(plan: Plan, say: Say) -> Comparison:
    """Members are chosen, then capacities searched, then whole runs made, then worlds searched. What the
    cache holds is not simulated again."""
    found = Comparison(plan)
    cells = [(scenario, column) for column in _longest_first(plan) for scenario in plan.scenarios]
    with _pool(plan.jobs) as pool:
        tuned = {cell: pool.submit(tune, plan, *cell) for cell in cells}
        found.tuned = _gather(tuned, "members", say)
        capacities = {cell: pool.submit(capacities_of, plan, *cell, found.tuned[cell]) for cell in cells}
        found.capacity = _gather(capacities, "capacity", say)
        runs = {
            cell: pool.submit(
                whole_runs, plan, *cell, found.tuned[cell].member, found.capacity[cell[0], BASELINE]
            )
            for cell in cells
        }
        found.runs = _gather(runs, "runs", say)
        again = {
            (world, scenario, column): pool.submit(
                capacity_in_world, plan, world, scenario, column, found.tuned[scenario, column]
            )
            for world in plan.worlds
            for scenario in plan.world_scenarios
            for column in plan.world_columns
            if (scenario, column) in found.tuned
        }
        found.worlds = _gather(again, "worlds", say)
    return found


def tune(plan: Plan, scenario_name: str, column: str) -> Tuned:
    """The best member, on arrivals that are used for nothing else. Runs in a worker process."""
    scenario = SCENARIOS[scenario_name]
    members = plan.members(scenario, column)
    if len(members) == 1:
        return Tuned(column, {column: scenario.first_rate})
    case = plan.case(scenario, TUNING_SEED)
    short = replace(case, window_s=case.window_s * plan.tuning_scale)
    return _best(plan, short, members, RateGrid(TUNING_STEP), scenario.first_rate)


def capacities_of(plan: Plan, scenario_name: str, column: str, tuned: Tuned) -> list[float]:
    """The member's highest rate under each seed; each search begins where the last one ended. Runs in a
    worker process."""
    grid, rates = RateGrid(plan.step), []
    rate = tuned.rate or SCENARIOS[scenario_name].first_rate
    for seed in plan.seeds:
        passes = _judge(plan, plan.case(SCENARIOS[scenario_name], seed))
        found = bracket(tuned.member, passes, grid, grid.at(rate), 1)
        rates.append(grid.rate(found.low))
        rate = rates[-1] or rate
    return rates


def whole_runs(plan: Plan, scenario: str, column: str, member: str, capacities: list[float]) -> list[Run]:
    """Runs that are never given up, at loads relative to `capacities` of the baseline. Runs in a worker
    process."""
    cache, runs = Cache(plan.cache), []
    for seed, capacity in zip(plan.seeds, capacities, strict=True):
        for load in plan.loads if capacity else ():
            rate = round(capacity * load, 6)
            result = _whole(cache, plan.case(SCENARIOS[scenario], seed, member, rate))
            runs.append(Run(seed, load, rate, result.figures, result.num_preemptions))
    return runs


def _whole(cache: Cache, case: Case) -> Result:
    """A search's run that was not given up is a whole run."""
    searched = cache.get(replace(case, stop_below=WANTED))
    return searched if searched and searched.figures.complete else cache.run(case)


def capacity_in_world(plan: Plan, world: str, scenario_name: str, column: str, tuned: Tuned) -> float:
    """Highest rate with the first seed, of the member that is best there: the one chosen in the default world
    or a neighbour. Runs in a worker process."""
    scenario = SCENARIOS[scenario_name]
    case = replace(plan.case(scenario, plan.seeds[0]), world=world)
    members = plan.neighbours(scenario, column, tuned.member) if len(tuned.rates) > 1 else [tuned.member]
    return _best(plan, case, members, RateGrid(plan.step), tuned.rate or scenario.first_rate).rate


def _best(plan: Plan, case: Case, members: list[str], grid: RateGrid, first_rate: float) -> Tuned:
    found = best_of(members, _judge(plan, case), grid, grid.at(first_rate), coarse=2)
    best = max(members, key=lambda member: found[member].low)
    return Tuned(best, {member: grid.rate(bounds.low) for member, bounds in found.items()})


def _judge(plan: Plan, case: Case) -> Callable[[str, float], bool]:
    cache = Cache(plan.cache)

    def passes(policy: str, rate: float) -> bool:
        return keeps(cache.run(replace(case, policy=policy, rate=rate, stop_below=WANTED)))

    return passes


def keeps(result: Result) -> bool:
    """Every class keeps the wanted attainment."""
    return result.figures.complete and result.figures.worst_attainment >= WANTED


def _longest_first(plan: Plan) -> list[str]:
    """Columns by falling number of members."""
    sizes = {c: max(len(plan.members(SCENARIOS[s], c)) for s in plan.scenarios) for c in plan.columns}
    return sorted(plan.columns, key=lambda column: -sizes[column])


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """What has not begun is dropped when something fails."""
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _gather(futures: dict[Any, "Future[T]"], what: str, say: Say) -> dict[Any, T]:
    """Results in the order of the tasks, with a line for each as it comes."""
    names, began_s = {future: key for key, future in futures.items()}, time.monotonic()
    for count, future in enumerate(as_completed(names), 1):
        future.result()
        name = ", ".join(names[future])
        say(f"[{time.monotonic() - began_s:7.1f} s] {what} {count}/{len(names)}: {name}")
    return {key: future.result() for key, future in futures.items()}
