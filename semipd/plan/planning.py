"""The order of the simulations: what one GPU carries, then how many are enough; each policy by itself."""

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean
from typing import Any, TypeVar

from semipd.core.errors import SemipdError
from semipd.plan.answer import Answer, Carried, Fleet, means
from semipd.plan.question import Family, Question
from semipd.plan.work import Found, Judge, begin, carries, simulated
from semipd.sim.cases import Case, Result

FIRST_RATE = 4.0
"""Where the search begins for a trace without times."""

T = TypeVar("T")


@contextmanager
def processes(num: int) -> Iterator[Executor]:
    """Those that are still at work when it is left are ended."""
    pool = ProcessPoolExecutor(
        num, mp_context=multiprocessing.get_context("spawn"), initializer=begin, initargs=(os.getpid(),)
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


@dataclass(slots=True)
class Planner:
    """Fills `answer`. `say`: told of what has been found, a line each."""

    answer: Answer
    pool: Executor
    say: Callable[[str], None]

    @property
    def question(self) -> Question:
        return self.answer.question

    @property
    def judge(self) -> Judge:
        question = self.question
        return Judge(question.wanted, question.judged, question.enough)

    async def run(self) -> None:
        """Raises what a simulation raises, and SemipdError(`simulation_died`)."""
        question = self.question
        plans = [self._plan(gpu, family) for gpu in question.gpus for family in question.families]
        try:
            await asyncio.gather(*plans)
        except BrokenExecutor as error:
            message = "A process that simulates has died; the system may have had no memory left for it."
            raise SemipdError("simulation_died", message, "Try fewer --jobs.") from error
        self.answer.is_complete = True

    async def _plan(self, gpu: str, family: Family) -> None:
        carried = await self._carried(gpu, family)
        self.answer.carried.append(carried)
        if self.question.rate and carried.rate.mean:
            await self._number_of_gpus(gpu, carried)

    async def _carried(self, gpu: str, family: Family) -> Carried:
        """The first seed chooses the best member; the others measure it."""
        near = self.question.trace.recorded_rate or FIRST_RATE
        seeds = self.question.seeds
        first = await self._search(gpu, seeds[0], family.members, near)
        others = [self._search(gpu, seed, (first.policy,), first.rate or near) for seed in seeds[1:]]
        return Carried.of(gpu, [first, *await asyncio.gather(*others)])

    async def _search(self, gpu: str, seed: int, members: Sequence[str], near: float) -> Found:
        found = await self._do(carries, self._case(gpu, seed), tuple(members), near, self.judge)
        self.say(f"{gpu}, {found.policy}, seed {seed}: {found.rate:.3g} requests/s")
        return found

    async def _number_of_gpus(self, gpu: str, carried: Carried) -> None:
        """From what one carries alone upwards or downwards to the least number that is enough."""
        counts = self.question.counts
        num = min(max(ceil(self.question.rate / carried.rate.mean), counts.start), counts.stop - 1)
        step = -1 if await self._is_enough(gpu, carried.policy, num) else 1
        while (num := num + step) in counts:
            if await self._is_enough(gpu, carried.policy, num) == (step > 0):
                return

    async def _is_enough(self, gpu: str, policy: str, num_gpus: int) -> bool:
        """With every seed."""
        rate = self.question.rate / num_gpus
        name = policy if num_gpus == 1 else f"{num_gpus}*{policy}"
        runs = [
            self._do(simulated, self._case(gpu, seed), name, rate, self.judge) for seed in self.question.seeds
        ]
        fleet = _fleet(gpu, policy, num_gpus, rate, await asyncio.gather(*runs), self.judge)
        self.answer.fleets.append(fleet)
        verdict = "enough" if fleet.is_enough else "not enough"
        self.say(f"{num_gpus} of {gpu}, {policy}, at {self.question.rate:.3g} requests/s: {verdict}")
        return fleet.is_enough

    def _case(self, gpu: str, seed: int) -> Case:
        return replace(self.question.case, gpu=gpu, seed=seed)

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)


def _fleet(
    gpu: str, policy: str, num_gpus: int, rate: float, results: Sequence[Result], judge: Judge
) -> Fleet:
    whole = [result.figures for result in results if result.figures.complete]
    return Fleet(
        gpu,
        policy,
        num_gpus,
        rate,
        tuple(judge.attainment(r.figures) if r.figures.complete else None for r in results),
        all(judge.passes(result) for result in results),
        fmean(one.goodput_per_s for one in whole) * num_gpus if whole else None,
        means(one.ttft_ms for one in whole),
        means(one.tpot_ms for one in whole),
    )
