"""The lanes as the coordinator sees them: plans go to the launch loop, results come back when they come."""

from collections.abc import Sequence
from typing import Protocol

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.split import LaneName
from semipd.devices.cuda.lane.launch_loop import Command


class Runner(Protocol):
    """Turns the launch loop: a thread in the engine process."""

    def give(self, lane: LaneName, command: Command) -> None: ...

    def take(self, lane: LaneName) -> list[StepResult]:
        """Results since the last call. Raises LaneFailed."""


class CudaLane:
    """See devices.contract.Lane."""

    def __init__(self, name: LaneName, runner: Runner, depth: int) -> None:
        self.name: LaneName = name
        self._runner = runner
        self._depth = depth
        self._num_inflight = 0

    def capacity(self) -> int:
        return self._depth - self._num_inflight

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        assert self._num_inflight < self._depth, f"{self.name}: step {plan.step_id}, but the lane is full"
        self._num_inflight += 1
        self._runner.give(self.name, plan)

    def poll(self, now_ns: int) -> list[StepResult]:
        results = self._runner.take(self.name)
        self._num_inflight -= len(results)
        return results

    def rebuild(self, residents: Sequence[Join]) -> None:
        assert not self._num_inflight, f"{self.name}: rebuild with {self._num_inflight} steps in flight"
        self._runner.give(self.name, tuple(residents))
