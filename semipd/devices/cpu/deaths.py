"""When another worker is no remedy. Pure: time is passed in."""

from collections import deque
from collections.abc import Sequence

from semipd.core.plan import StepPlan
from semipd.core.request import SeqId
from semipd.core.split import LaneName
from semipd.devices.contract import LaneFailed
from semipd.devices.cpu.process import Death

MAX_DEATHS = 5
WINDOW_S = 120.0
"""A lane may lose so many workers within this time. Each start takes seconds."""

_MAX_NAMED = 16


class Deaths:
    """Of one lane's workers."""

    def __init__(self, lane: LaneName) -> None:
        self._lane = lane
        self._recent_s: deque[float] = deque()
        self._deadly_step: int | None = None

    def settled(self) -> None:
        """A step came to its end, so the one that a worker died of is through."""
        self._deadly_step = None

    def count(self, pid: int, death: Death, step: StepPlan | None, now_s: float) -> None:
        """`step`: what it was at; None: idle, or not ready yet. Raises LaneFailed when a second worker has
        died of the same step, or too many of whatever."""
        who = f"{self._lane} worker (pid {pid}) {death.how}"
        if step is not None:
            if step.step_id == self._deadly_step:
                message = (
                    f"{who} in step {step.step_id} ({_sequences(step)}), as the worker before it had ended."
                )
                raise LaneFailed(death.code, message, death.hint)
            self._deadly_step = step.step_id
        self._recent_s.append(now_s)
        while self._recent_s[0] <= now_s - WINDOW_S:
            self._recent_s.popleft()
        if len(self._recent_s) > MAX_DEATHS:
            message = (
                f"{who}; {len(self._recent_s)} have ended within {WINDOW_S:g} s, the limit is {MAX_DEATHS}."
            )
            raise LaneFailed(death.code, message, death.hint)


def _sequences(step: StepPlan) -> str:
    parts = [("decode of", step.decode), ("prefill of", [segment.seq for segment in step.segments])]
    return ", ".join(f"{name} {_names(seqs)}" for name, seqs in parts if seqs) or "of no sequence"


def _names(seqs: Sequence[SeqId]) -> str:
    more = len(seqs) - _MAX_NAMED
    named = ", ".join(map(str, seqs[:_MAX_NAMED]))
    return f"sequences {named} and {more} more" if more > 0 else f"sequences {named}"
