"""One loop launches for both lanes, decode first (DESIGN section 2): plans in, results out, never blocked by
the device. `turn` does what can be done now; whoever runs it decides how to wait."""

import time
from collections import deque
from collections.abc import Callable

from semipd.core.errors import SemipdError
from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.split.launch_split import split_to_use

GROUPS_AHEAD = 2
"""Pieces of a prefill on the device at once: enough that it never runs dry, few enough that a new split takes
effect soon."""

STEP_LIMIT_NS = 60_000_000_000
"""A step that takes longer is stuck: the longest chunk of the largest model takes seconds."""

IDLE_BEFORE_CAPTURE_NS = 200_000_000
"""Capturing a graph makes the next request wait for it, so it is done only in a longer pause."""

WARM_UP_POLL_S = 1e-3

Command = StepPlan | tuple[Join, ...]
"""A plan, or the residents of a rebuild."""

Deliver = Callable[[LaneName, StepResult], None]


class LaunchLoop:
    """`inbox` may be filled by another thread; everything else belongs to the one that calls `turn`."""

    def __init__(self, prefill: LaneExecutor, decode: LaneExecutor, num_units: int, deliver: Deliver) -> None:
        prefill.peer, decode.peer = decode, prefill
        self.inbox: deque[tuple[LaneName, Command]] = deque()
        self.lanes: dict[LaneName, LaneExecutor] = {"decode": decode, "prefill": prefill}
        self._num_units = num_units
        self._deliver = deliver
        self._prefill_split = prefill.split
        self._worked_at_ns = time.monotonic_ns()

    @property
    def is_busy(self) -> bool:
        """Steps are in flight, or about to be."""
        return bool(self.inbox) or any(lane.inflight for lane in self.lanes.values())

    def describe(self) -> str:
        """The lanes' situation, for a diagnosis."""
        return " ".join(
            f"{name.capitalize()} lane: split {lane.split}, {len(lane.residents)} sequences, steps "
            f"{[step.plan.step_id for step in lane.inflight]} in flight."
            for name, lane in self.lanes.items()
        )

    def turn(self, now_ns: int) -> bool:
        """Receive, settle, launch. Whether anything was done.

        Raises SemipdError(`step_stuck`), CudaError.
        """
        worked = self._receive() | self._settle() | self._launch()
        if worked:
            self._worked_at_ns = now_ns
        self._check_progress(now_ns)
        return worked

    def run_alone(self, name: LaneName, plan: StepPlan) -> StepResult:
        """Before serving: one step, from its plan to its result. Blocks."""
        lane = self.lanes[name]
        lane.begin(plan)
        while lane.next_step is not None:
            lane.launch_piece(plan.split)
        results = list[StepResult]()
        while not results:
            time.sleep(WARM_UP_POLL_S)
            self._check_progress(time.monotonic_ns())
            results = lane.settle()
        return results[0]

    def use_pause(self, now_ns: int) -> bool:
        """Capture one missing graph, if there has been nothing to do for a while. Whether it did."""
        if self.is_busy or now_ns - self._worked_at_ns < IDLE_BEFORE_CAPTURE_NS:
            return False
        return self.capture_next()

    def capture_next(self) -> bool:
        """Capture the graph that is missed most, decode's before the prefill's. Whether there was one."""
        for lane in self.lanes.values():
            key = lane.graphs.next_missing()
            if key is not None:
                lane.capture(key)
                return True
        return False

    def _receive(self) -> bool:
        worked = bool(self.inbox)
        while self.inbox:
            name, command = self.inbox.popleft()
            if isinstance(command, StepPlan):
                self.lanes[name].begin(command)
                if command.split.prefill_units:
                    # A prefill under way moves with the newest split, at its next group of layers.
                    self._prefill_split = command.split
            else:
                self.lanes[name].rebuild(command)
        return worked

    def _settle(self) -> bool:
        worked = False
        for name, lane in self.lanes.items():
            for result in lane.settle():
                self._deliver(name, result)
                worked = True
        return worked

    def _launch(self) -> bool:
        decode, prefill = self.lanes["decode"], self.lanes["prefill"]
        worked = False
        while (step := decode.next_step) is not None:
            self._launch_piece(decode, step.plan.split)
            worked = True
        if prefill.next_step is not None and prefill.num_marks < GROUPS_AHEAD:
            self._launch_piece(prefill, self._prefill_split)
            worked = True
        return worked

    def _launch_piece(self, lane: LaneExecutor, wanted: Split) -> None:
        held = lane.peer.held_units()
        lane.launch_piece(split_to_use(lane.name, wanted, lane.split, held, self._num_units))

    def _check_progress(self, now_ns: int) -> None:
        for name, lane in self.lanes.items():
            if lane.inflight and now_ns - lane.inflight[0].begun_at_ns > STEP_LIMIT_NS:
                step = lane.inflight[0]
                raise SemipdError(
                    "step_stuck",
                    f"Step {step.plan.step_id} of the {name} lane has not finished within "
                    f"{STEP_LIMIT_NS / 1e9:g} s: split {step.plan.split}, {len(step.plan.decode)} decodes, "
                    f"{len(step.plan.segments)} chunks, {len(step.pieces)} pieces not launched, "
                    f"{len(step.marks)} not done.",
                    "Look for Xid messages in the kernel log (dmesg).",
                )
