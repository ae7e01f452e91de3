"""A lane whose executor is a worker process; one step in flight."""

from collections.abc import Sequence

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.request import SeqId
from semipd.devices.contract import LaneName
from semipd.devices.cpu.messages import plan_to_wire, rebuild_to_wire, result_from_wire
from semipd.devices.cpu.process import Worker


class CpuLane:
    """See devices.contract.Lane. The worker moves to the plan's cores when it takes the plan, and its result
    says that it is done with them, so a caller that waits for results never shares a core between lanes."""

    def __init__(self, worker: Worker) -> None:
        self.name: LaneName = worker.lane
        self._worker = worker
        self._in_flight: int | None = None
        self._sent_decode: tuple[SeqId, ...] = ()

    def capacity(self) -> int:
        return 1 if self._in_flight is None else 0

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        assert self._in_flight is None, (
            f"{self.name}: step {plan.step_id} before {self._in_flight} has settled"
        )
        self._worker.channel.send(plan_to_wire(plan, self._sent_decode))
        self._in_flight, self._sent_decode = plan.step_id, plan.decode

    def poll(self, now_ns: int) -> list[StepResult]:
        results = [result_from_wire(message) for message in self._worker.receive()]
        for result in results:
            assert result.step_id == self._in_flight, (
                f"{self.name}: {result.step_id} is not {self._in_flight}"
            )
            self._in_flight = None
        return results

    def rebuild(self, residents: Sequence[Join]) -> None:
        assert self._in_flight is None, f"{self.name}: rebuild while step {self._in_flight} is in flight"
        self._worker.channel.send(rebuild_to_wire(residents))
