"""The demo's drain: somebody begins it and takes it back."""

from typing import Any, Literal

from semipd_top.demo.requests import DemoHistory

ACTOR = "deploy (pid 31204)"
REASON = "new weights"
LIMIT_S = 60.0


class DemoDrain:
    """Times are seconds since the demo began."""

    def __init__(self, history: DemoHistory) -> None:
        self.state: Literal["serving", "draining", "drained"] = "serving"
        self._history = history
        self._deadline = self._undo = 0.0

    def begin(self, at: float, undo_after_s: float) -> None:
        self.state = "draining"
        self._deadline, self._undo = at + LIMIT_S, at + undo_after_s
        self._tell(at, "draining", REASON)

    def turn(self, at: float) -> None:
        if self.state == "draining" and not self._history.live:
            self.state = "drained"
            self._tell(at, "drained", REASON)
        if self.state != "serving" and at >= self._undo:
            self.state = "serving"
            self._tell(at, "serving", "not today")

    def to_wire(self, now: float) -> dict[str, Any]:
        """`drain` of a state frame."""
        arrived = [request.arrived for request in self._history.live.values()]
        is_serving = self.state == "serving"
        return {
            "state": self.state,
            "awaited": len(arrived),
            "oldest_ms": (now - min(arrived)) * 1e3 if arrived else None,
            "seconds_left": self._deadline - now if self.state == "draining" else None,
            "ended": 0,
            "actor": None if is_serving else ACTOR,
            "reason": None if is_serving else REASON,
        }

    def _tell(self, at: float, state: str, reason: str) -> None:
        told = {"state": state, "actor": ACTOR, "reason": reason, "limit_s": LIMIT_S}
        told |= {"awaited": len(self._history.live), "ended": 0}
        self._history.journal.add(at, "drain_changed", told)
