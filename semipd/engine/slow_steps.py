"""Steps that took far longer than the step-time models predicted: an event for operators, and a count."""

from collections import deque

from semipd.core.events import SLOW_STEP
from semipd.engine.lane_state import LaneState
from semipd.partition.interface import StepRecord
from semipd.sched.outbox import Outbox

SLOW_FACTOR = 4.0
"""Busy time over predicted. Noise and contention between the lanes stay well below it."""

SLOW_FLOOR_NS = 20_000_000
"""A shorter step is not called slow: nobody who reads a stream notices it."""

MAX_EVENTS_PER_S = 4
"""In any second; slow steps beyond are only counted."""


class SlowSteps:
    """Judges every step that partition control has learned from."""

    def __init__(self) -> None:
        self._told_ns: deque[int] = deque(maxlen=MAX_EVENTS_PER_S)

    def judge(
        self, state: LaneState, step_id: int, step: StepRecord, predicted_ms: float | None, out: Outbox
    ) -> None:
        """`predicted_ms`: before the step was seen; None: no prediction can be trusted yet."""
        if step.busy_ns < SLOW_FLOOR_NS or predicted_ms is None:
            return
        busy_ms = step.busy_ns / 1e6
        if busy_ms < SLOW_FACTOR * predicted_ms:
            return
        state.num_slow_steps += 1
        if self._may_tell(out.now_ns):
            out.event(
                SLOW_STEP(
                    {
                        "lane": step.lane,
                        "step_id": step_id,
                        "busy_ms": busy_ms,
                        "predicted_ms": predicted_ms,
                        "units": step.units,
                        "new_tokens": step.new_tokens,
                        "num_decodes": step.num_decodes,
                    }
                )
            )

    def _may_tell(self, now_ns: int) -> bool:
        told = self._told_ns
        if len(told) == MAX_EVENTS_PER_S and now_ns - told[0] < 1_000_000_000:
            return False
        told.append(now_ns)
        return True
