"""A step in flight, with the sequences it works on."""

from typing import NamedTuple

from semipd.core.plan import Segment, StepPlan
from semipd.sched.sequence import Sequence

Chunk = tuple[Sequence, Segment]


class Flight(NamedTuple):
    """A launched step and the sequences it works on, in the plan's order. `context_tokens`: KV read by the
    decodes; `other_units`: what the other lane held when it was launched."""

    plan: StepPlan
    decodes: list[Sequence]
    chunks: list[Chunk]
    context_tokens: int
    other_units: int
    launched_at_ns: int

    @property
    def sequences(self) -> list[Sequence]:
        return self.decodes + [sequence for sequence, _ in self.chunks]

    @property
    def new_tokens(self) -> int:
        """Prompt tokens computed by the chunks."""
        return sum([segment.length for _, segment in self.chunks]) if self.chunks else 0

    @property
    def attended_tokens(self) -> float:
        """KV read by the chunks, see StepRecord."""
        return sum([s.length * (s.start + (s.length + 1) / 2) for _, s in self.chunks]) if self.chunks else 0
