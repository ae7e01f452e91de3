"""The life of the daemon's engine, as everybody but its supervisor sees it: facts, refusals and questions.

starting ─▶ ready ─death─▶ restarting ─▶ ready ...
                               └─crash loop─▶ failed
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from semipd.config.sections import SupervisionConfig
from semipd.core.errors import SemipdError
from semipd.core.messages import EngineQuestion, GetStatus
from semipd.core.request import Request, SeqId
from semipd.core.state.daemon import EngineStage, EngineState, StartPhase
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.live_settings import LiveSettings
from semipd.daemon.engine.ready import EngineReady, PhaseTime
from semipd.system.clock import SYSTEM_CLOCK, Clock

A = TypeVar("A")

STATUS_LIMIT_S = 2.0

DEFAULT_SUPERVISION = SupervisionConfig()


@dataclass(slots=True)
class Outage:
    """From a death until an engine is ready again. `attempt` counts starts, `next_start_s` is the monotonic
    time of the one that is due."""

    why: SemipdError
    since_s: float
    attempt: int = 0
    next_start_s: float = 0.0


class EngineLife(ABC):
    """Whoever starts engines keeps the state; requests and operators go through the methods."""

    def __init__(
        self, supervision: SupervisionConfig = DEFAULT_SUPERVISION, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.state: EngineStage = "starting"
        self.ready: EngineReady | None = None
        self.outage: Outage | None = None
        self.failure: SemipdError | None = None
        self.num_restarts = 0
        self.supervision = supervision
        self.live_settings = LiveSettings(clock.monotonic_s)
        self._clock_s = clock.monotonic_s

    @property
    @abstractmethod
    def can_submit(self) -> bool:
        """An engine is ready and reads what it is sent."""

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Only while `can_submit`."""

    @abstractmethod
    def cancel(self, seq: SeqId) -> None:
        """Best effort: an engine that is gone has cancelled everything."""

    @abstractmethod
    async def ask(self, question: Callable[[int], EngineQuestion[A]], limit_s: float = STATUS_LIMIT_S) -> A:
        """Send what `question` makes of a nonce, and wait for the answer.

        Raises SemipdError: the engine's refusal, `engine_silent` after `limit_s`, `engine_not_ready`,
        `engine_failed` or `shutting_down`.
        """

    @property
    @abstractmethod
    def timeline(self) -> list[PhaseTime]:
        """Of the last start."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Of the engine process; None: there is none."""

    @abstractmethod
    def _phase(self) -> StartPhase | None:
        """What a start is busy with."""

    async def status(self, limit_s: float = STATUS_LIMIT_S) -> EngineStatus:
        """A round trip through the coordinator's loop. Raises what `ask` does."""
        return await self.ask(GetStatus, limit_s)

    def check_accepting(self) -> None:
        """Whether new requests may be taken, be it to wait for the next engine. Raises what `check_ready`
        does."""
        if self.state != "restarting":
            self.check_ready()

    def check_ready(self) -> None:
        """Raises SemipdError: `engine_not_ready`, `engine_failed` or `shutting_down`."""
        match self.state:
            case "ready":
                return
            case "failed":
                assert self.failure is not None
                raise self.failure
            case "stopping":
                raise SemipdError(
                    "shutting_down", "The daemon is shutting down.", "Send the request elsewhere."
                )
        raise SemipdError("engine_not_ready", self._why_not_ready(), "Send the request again later.")

    def report(self) -> EngineState:
        why = self.failure or (self.outage.why if self.outage else None)
        return {
            "state": self.state,
            "pid": self.pid,
            "phase": self._phase(),
            "attempt": self.outage.attempt if self.outage else None,
            "backoff_left_s": self._backoff_left_s(),
            "why": why.message if why else None,
            "hint": why.hint if why else None,
            "restarts": self.num_restarts,
        }

    def _backoff_left_s(self) -> float | None:
        if self.outage is None or self.state != "restarting":
            return None
        return max(self.outage.next_start_s - self._clock_s(), 0.0)

    def _why_not_ready(self) -> str:
        if self.outage is not None and (left_s := self._backoff_left_s()):
            return f"The engine is restarted in {left_s:.1f} s. {self.outage.why.message}"
        phase = self._phase()
        if phase is None:
            return "The engine is still starting."
        return (
            f"The engine is still busy with: {phase['name']} "
            f"({phase['seconds']:.1f} s of at most {phase['limit_s']:g} s)."
        )
