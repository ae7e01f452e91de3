"""What an engine says: of itself when it has started, how long that took, and what it refuses."""

from dataclasses import dataclass

from semipd.core.errors import Refusal, SemipdError
from semipd.core.state.device import DeviceFacts


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One line of the start-up timeline."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine's `ready` frame."""

    info: DeviceFacts
    scheduler: str
    notes: tuple[str, ...]
    version: str

    @property
    def vocab_size(self) -> int:
        return self.info["vocab_size"]

    @property
    def max_model_len(self) -> int:
        return self.info["max_model_len"]


def refusal(refused: Refusal) -> SemipdError:
    """What an engine that refuses a question has said."""
    return SemipdError(refused["code"], refused["message"], refused["hint"], param=refused["param"])
