"""What an engine says of itself when it has started, and how long that took."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One line of the start-up timeline."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine's `ready` frame. `info` is devices.contract.DeviceInfo as a map."""

    info: dict[str, Any]
    scheduler: str
    notes: tuple[str, ...]
    version: str

    @property
    def vocab_size(self) -> int:
        return int(self.info["vocab_size"])

    @property
    def max_model_len(self) -> int:
        return int(self.info["max_model_len"])
