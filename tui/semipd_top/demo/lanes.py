"""What the demo's engine counts: steps of a lane, blocks of the pool, one turn."""

from dataclasses import dataclass

from semipd_top.demo.gpu import TOTAL_BLOCKS
from semipd_top.demo.partition import Choice


@dataclass(slots=True)
class Lane:
    """Counted since the engine's start. `spare_steps`: the part of a step that has not ended."""

    steps: int = 0
    slow_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    busy_ms: float = 0.0
    spare_steps: float = 0.0
    last_step: float | None = None

    def work(self, seconds: float, num_steps: float, now: float) -> int:
        """Busy for so long; returns how many steps have ended."""
        self.busy_ms += seconds * 1e3
        self.spare_steps += num_steps
        ended = int(self.spare_steps)
        self.spare_steps -= ended
        self.steps += ended
        if ended:
            self.last_step = now
        return ended


@dataclass(slots=True)
class Pool:
    """Blocks; cached ones are free, but hold prefixes of finished requests."""

    used_blocks: int = 0
    cached_blocks: int = 0

    @property
    def free_blocks(self) -> int:
        return TOTAL_BLOCKS - self.used_blocks

    def take(self, num_blocks: int) -> None:
        assert num_blocks <= self.free_blocks, f"{num_blocks} blocks wanted, {self.free_blocks} free"
        self.used_blocks += num_blocks
        self.cached_blocks = min(self.cached_blocks, self.free_blocks)

    def give(self, num_blocks: int, *, cached: bool) -> None:
        self.used_blocks -= num_blocks
        self.cached_blocks += num_blocks if cached else 0


@dataclass(slots=True)
class Turn:
    """`shared_s`: how long prefill worked beside decode; `choice`: what both used then."""

    start: float
    end: float
    choice: Choice
    shared_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.end - self.start
