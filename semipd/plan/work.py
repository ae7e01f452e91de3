"""One simulation after another, in a process of its own: the rates a GPU carries, and what N of them make of
a rate."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from semipd.sim.cases import Case, Result, run_case
from semipd.sim.outcomes import Figures
from semipd.sim.policies import parse_policy
from semipd.sim.search import RateGrid, best_of
from semipd.system.parent_death import die_with_parent

STEP = 0.04
"""Resolution of rates."""

COARSE = 4
"""Steps to which the members of a family are known that cannot be its best."""

WINDOW_MARGIN = 1.2
"""So many times the requests that are needed to judge come at least."""


@dataclass(frozen=True, slots=True)
class Judge:
    """`judged`: the classes with targets. One with `enough` requests must keep them by itself; the smaller
    ones together with all others."""

    wanted: float
    judged: tuple[str, ...]
    enough: int

    def attainment(self, figures: Figures) -> float:
        """Of the class that fares worst, or of all with targets if that is less."""
        found = [row for name, row in figures.by_class.items() if name in self.judged]
        num = sum(row.num_requests for row in found)
        together = sum(row.attainment * row.num_requests for row in found) / num if num else 1.0
        return min([row.attainment for row in found if row.num_requests >= self.enough] + [together])

    def passes(self, result: Result) -> bool:
        return result.figures.complete and self.attainment(result.figures) >= self.wanted


@dataclass(frozen=True, slots=True)
class Found:
    """What one GPU carries with one seed. `rate`: requests per second that it keeps, 0: none that was tried;
    at `lost_at` it does not. `result`: of the run at `rate`."""

    policy: str
    rate: float
    lost_at: float
    result: Result | None


def begin(parent_pid: int) -> None:
    """Of every process: it ends with its parent, which alone is told of Ctrl-C."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def carries(case: Case, members: Sequence[str], near_rate: float, judge: Judge) -> Found:
    """The highest rate of the best of the policies. Raises SemipdError as `run_case` does."""
    grid, runs = RateGrid(STEP), dict[tuple[str, float], Result]()

    def passes(policy: str, rate: float) -> bool:
        result = runs[policy, rate] = simulated(case, policy, rate, judge)
        return judge.passes(result)

    found = best_of(members, passes, grid, grid.at(near_rate), COARSE)
    best = max(found, key=lambda policy: found[policy].low)
    rate = grid.rate(found[best].low)
    return Found(best, rate, grid.rate(found[best].high), runs.get((best, rate)))


def simulated(case: Case, policy: str, rate: float, judge: Judge) -> Result:
    """`rate`: per GPU. Given up once too many have missed. The window is as long as it takes for enough
    requests."""
    in_all = rate * parse_policy(policy).num_gpus
    window_s = max(case.window_s, WINDOW_MARGIN * judge.enough / in_all)
    return run_case(replace(case, policy=policy, rate=rate, window_s=window_s, stop_below=judge.wanted))


def split_shares(held_s: Mapping[str, float]) -> dict[str, float]:
    """Share of the time that each split held, longest first; those above 1 %."""
    total = sum(held_s.values())
    shares = {split: seconds / total for split, seconds in held_s.items()} if total else {}
    return dict(sorted(((s, f) for s, f in shares.items() if f >= 0.01), key=lambda item: -item[1]))
