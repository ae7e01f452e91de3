"""A lane whose executor is a worker process; one step in flight.

up ──link ends, or a step takes too long──▶ ending ──reaped──▶ starting ──ready──▶ up, and owed a rebuild
                                               ▲                   │
                                               └──────link ends────┘
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.request import SeqId
from semipd.core.split import LaneName
from semipd.devices.contract import LaneFailed, WorkerDeath, WorkerNews, WorkerReplacement
from semipd.devices.cpu.deaths import Deaths
from semipd.devices.cpu.messages import plan_to_wire, rebuild_to_wire, result_from_wire
from semipd.devices.cpu.process import Worker, unkillable, worker_timeout
from semipd.system.patience import StartPatience, StepClock

_SLOW_FACTOR = 20
"""A step may take so much longer than its tokens took in the warm-up, whatever the limit is."""

_REAP_EVERY_NS = 5_000_000
_REAP_LIMIT_NS = 60_000_000_000

log = logging.getLogger(__name__)


class Awaited(NamedTuple):
    """A word that a starting worker owes, without standing still for `limit_s`. `what` completes "did not
    ..."."""

    op: str
    what: str
    limit_s: float


class CpuLane:
    """See devices.contract.WorkerLane. The worker moves to the plan's cores when it takes the plan, and its
    result says that it is done with them, so a caller that waits for results never shares a core between
    lanes."""

    def __init__(
        self,
        worker: Worker,
        start: Callable[[], Worker],
        start_words: Sequence[Awaited],
        step_limit_s: float,
        token_ns: int,
    ) -> None:
        """`worker` is ready, `start` makes another like it, which then says `start_words`. `token_ns`: what a
        prompt token took in the warm-up."""
        self.name: LaneName = worker.lane
        self.worker = worker
        self.state: Literal["up", "ending", "starting"] = "up"
        self.num_restarts = 0
        self._start = start
        self._start_words = tuple(start_words)
        self._awaited: deque[Awaited] = deque()
        self._step_limit_s = step_limit_s
        self._token_ns = token_ns
        self._step: StepPlan | None = None
        self._sent_decode: tuple[SeqId, ...] = ()
        self._due_ns: int | None = None
        self._clock: StartPatience | StepClock | None = None
        self._looked_ns = 0
        self._lost_at_ns = 0
        self._deaths = Deaths(self.name)
        self._news: list[WorkerNews] = []

    def capacity(self) -> int:
        return 1 if self._step is None and self.state == "up" else 0

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        assert self.capacity(), f"{self.name}: step {plan.step_id} while {self.state}, after {self._step}"
        self.worker.channel.send(plan_to_wire(plan, self._sent_decode))
        self._step, self._sent_decode = plan, plan.decode
        self._watch(StepClock(self._limit_s(plan), self.worker.waiting_time()), now_ns)

    def poll(self, now_ns: int) -> list[StepResult]:
        match self.state:
            case "ending":
                self._note_death(now_ns)
                return []
            case "starting":
                self._check_replacement(now_ns)
                return []
        results = []
        for message in self.worker.receive():
            results.append(result_from_wire(message))
            self._settle(results[-1])
        if self.worker.is_lost:
            self._end(now_ns)
        elif self._step is not None and (why := self._looked(now_ns)):
            self._due_ns = None
            self.worker.kill(f"did not finish step {self._step.step_id} {why} and was killed")
        return results

    def rebuild(self, residents: Sequence[Join]) -> None:
        assert self.capacity(), f"{self.name}: rebuild while {self.state}, step {self._step} in flight"
        self.worker.channel.send(rebuild_to_wire(residents))

    def worker_news(self) -> list[WorkerNews]:
        news, self._news = self._news, []
        return news

    def files(self) -> list[int]:
        """A worker on its way out has none: its link would be readable for ever."""
        return [] if self.state == "ending" else [self.worker.channel.fileno()]

    def wake_at_ns(self) -> int | None:
        return self._due_ns

    def end(self) -> None:
        self.worker.end()

    def _settle(self, result: StepResult) -> None:
        assert self._step is not None, f"{self.name}: result of {result.step_id}, but nothing is in flight"
        assert self._step.step_id == result.step_id, (
            f"{self.name}: {result.step_id} is not {self._step.step_id}"
        )
        self._step = self._due_ns = None
        self._deaths.settled()

    def _limit_s(self, plan: StepPlan) -> float:
        num_tokens = sum(segment.length for segment in plan.segments)
        return max(self._step_limit_s, _SLOW_FACTOR * num_tokens * self._token_ns / 1e9)

    def _end(self, now_ns: int) -> None:
        self.state = "ending"
        self._lost_at_ns = self._due_ns = now_ns

    def _note_death(self, now_ns: int) -> None:
        death = self.worker.reap()
        if death is None:
            if now_ns > self._lost_at_ns + _REAP_LIMIT_NS:
                raise unkillable(self.worker)
            self._due_ns = now_ns + _REAP_EVERY_NS
            return
        step, self._step = self._step, None
        self._deaths.count(self.worker.pid, death, step, now_ns / 1e9)
        log.warning("%s worker (pid %d) %s; starting another", self.name, self.worker.pid, death.how)
        step_id = None if step is None else step.step_id
        self._news.append(WorkerDeath(self.worker.pid, death.how, death.signal, step_id))
        self._start_replacement(now_ns)

    def _start_replacement(self, now_ns: int) -> None:
        try:
            self.worker = self._start()
        except OSError as error:
            raise LaneFailed(
                "worker_died", f"Another {self.name} worker cannot be started: {error}."
            ) from error
        self.state = "starting"
        self._awaited = deque(self._start_words)
        self._watch_start(now_ns)

    def _check_replacement(self, now_ns: int) -> None:
        for message in self.worker.receive():
            word = self._awaited.popleft()
            assert message["op"] == word.op, f"{self.name} worker said {message['op']}, not {word.op}"
            if not self._awaited:
                self._take_up_work(now_ns)
                return
            self._watch_start(now_ns)
        if self.worker.is_lost:
            self._end(now_ns)
        elif why := self._looked(now_ns):
            assert isinstance(self._clock, StartPatience)
            raise worker_timeout(self.name, self._awaited[0].what, why, self._clock)

    def _watch_start(self, now_ns: int) -> None:
        self._watch(StartPatience(self._awaited[0].limit_s, self.worker.usage()), now_ns)

    def _watch(self, clock: StartPatience | StepClock, now_ns: int) -> None:
        self._clock, self._looked_ns = clock, now_ns
        self._due_ns = now_ns + int(clock.look_every_s * 1e9)

    def _looked(self, now_ns: int) -> str | None:
        """Why the worker has had time enough, if it has."""
        if self._clock is None or self._due_ns is None or now_ns < self._due_ns:
            return None
        elapsed_s, self._looked_ns = (now_ns - self._looked_ns) / 1e9, now_ns
        self._due_ns = now_ns + int(self._clock.look_every_s * 1e9)
        return self._clock.looked(elapsed_s, self.worker.usage())

    def _take_up_work(self, now_ns: int) -> None:
        seconds = (now_ns - self._lost_at_ns) / 1e9
        self.state, self._due_ns, self._sent_decode = "up", None, ()
        self.num_restarts += 1
        log.info("%s worker (pid %d) is ready after %.1f s", self.name, self.worker.pid, seconds)
        self._news.append(WorkerReplacement(self.worker.pid, seconds))
