"""The life of the demo's engine: its start in phases, its death, and how it is replaced."""

from typing import Any, Literal

WHY = "The engine ended by signal 9 (SIGKILL)."
HINT = "Send the request again."
BACKOFF_S = 1.0
PHASES = (
    ("starting CUDA", 1.2, 60.0),
    ("loading weights", 4.6, 120.0),
    ("dividing the SMs", 0.4, 30.0),
    ("capturing graphs", 2.4, 300.0),
    ("warming up", 0.9, 120.0),
)
"""Name, seconds, limit."""

WARM_FACTOR = 0.6
"""Of these times, when another engine was there before: the weights are in the page cache."""

FAILED_START_S = 1.4
"""After a death the first start fails so soon, while memory of the dead engine is still taken."""

State = Literal["starting", "ready", "restarting"]


class EngineLife:
    """Times are seconds since the demo began."""

    def __init__(self, at: float) -> None:
        self.state: State = "starting"
        self.restarts = 0
        self.died_at: float | None = None
        self._start_at = at
        self._attempt = 0
        self._why = ""

    @property
    def was_ready(self) -> bool:
        return self.state == "ready" or self.died_at is not None

    def die(self, at: float) -> None:
        self.state, self.died_at = "restarting", at
        self._attempt, self._why = 1, WHY
        self._start_at = at + BACKOFF_S

    def turn(self, at: float) -> bool:
        """True: an engine is ready just now."""
        if self.state == "ready":
            return False
        if self.state == "restarting" and self._attempt == 1 and at >= self._start_at + FAILED_START_S:
            self._attempt = 2
            self._why = "The engine ended because of insufficient_memory: 9.3 GiB less than needed are free."
            self._start_at = at + 2 * BACKOFF_S
        if at < self._start_at + sum(seconds for _, seconds, _ in PHASES) * self._factor:
            return False
        self.restarts += self.state == "restarting"
        self.state = "ready"
        return True

    def report(self, at: float) -> dict[str, Any]:
        """`engine` of a state frame."""
        is_away = self.state == "restarting"
        return {
            "state": self.state,
            "phase": None if self.state == "ready" else self._phase(at),
            "attempt": self._attempt if is_away else None,
            "backoff_left_s": max(self._start_at - at, 0.0) if is_away else None,
            "why": self._why if is_away else None,
            "hint": HINT if is_away else None,
            "restarts": self.restarts,
        }

    def why_not_ready(self, at: float) -> str:
        """In a sentence, while no engine is ready."""
        phase = self._phase(at)
        if phase is None:
            return f"The engine is restarted in {self._start_at - at:.1f} s. {self._why}"
        return (
            f"The engine is still busy with: {phase['name']} "
            f"({phase['seconds']:.1f} s of at most {phase['limit_s']:g} s)."
        )

    @property
    def _factor(self) -> float:
        return WARM_FACTOR if self.died_at is not None else 1.0

    def _phase(self, at: float) -> dict[str, Any] | None:
        seconds = at - self._start_at
        if seconds < 0:
            return None
        for name, takes_s, limit_s in PHASES[:-1]:
            if seconds < takes_s * self._factor:
                return {"name": name, "seconds": seconds, "limit_s": limit_s}
            seconds -= takes_s * self._factor
        name, _, limit_s = PHASES[-1]
        return {"name": name, "seconds": seconds, "limit_s": limit_s}
