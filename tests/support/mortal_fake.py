"""The fake device with lanes that can lose their executor, under the virtual clock."""

from dataclasses import dataclass, field
from typing import Any

from semipd.core.plan import StepPlan, StepResult
from semipd.core.split import LaneName
from semipd.devices.contract import WorkerDeath, WorkerNews, WorkerReplacement
from semipd.devices.fake import FakeDevice, FakeLane


@dataclass(slots=True, eq=False)
class MortalLane(FakeLane):
    """See devices.contract.WorkerLane."""

    pid: int = 1
    back_at_ns: int | None = None
    launched: list[int] = field(default_factory=list)
    _news: list[WorkerNews] = field(default_factory=list)

    def kill(self, back_at_ns: int, *, after_writing: bool) -> None:
        """`after_writing`: it has done the work of its steps, but nobody has heard of it."""
        steps = list(self._queue)
        if after_writing:
            for plan, _, _ in steps:
                self._execute(plan, 1)
        self._queue.clear()
        self.residents = {}
        self.back_at_ns = back_at_ns
        step_id = steps[0][0].step_id if steps else None
        self._news.append(WorkerDeath(self.pid, "was ended by SIGKILL", "SIGKILL", step_id))

    def capacity(self) -> int:
        # FakeLane.capacity(self): super() does not work in a dataclass with slots
        return FakeLane.capacity(self) if self.back_at_ns is None else 0

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        self.launched.append(plan.step_id)
        FakeLane.launch(self, plan, now_ns)

    def poll(self, now_ns: int) -> list[StepResult]:
        if self.back_at_ns is not None and now_ns >= self.back_at_ns:
            self.back_at_ns = None
            self._free_at_ns = now_ns
            self.pid += 1
            self._news.append(WorkerReplacement(self.pid, 0.5))
        return FakeLane.poll(self, now_ns)

    def worker_news(self) -> list[WorkerNews]:
        news, self._news = self._news, []
        return news

    def next_finish_ns(self) -> int | None:
        return FakeLane.next_finish_ns(self) if self.back_at_ns is None else self.back_at_ns


class MortalDevice(FakeDevice):
    prefill: MortalLane
    decode: MortalLane

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prefill = self._mortal(self.prefill)
        self.decode = self._mortal(self.decode)

    def _mortal(self, lane: FakeLane) -> MortalLane:
        return MortalLane(lane.name, self, lane.depth, lane.latency)

    def lane(self, name: LaneName) -> MortalLane:
        return self.prefill if name == "prefill" else self.decode
