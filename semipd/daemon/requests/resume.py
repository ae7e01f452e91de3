"""Which request goes to the engine next, also after a crash. Pure: sequence numbers in, sequence numbers out.

    arrived ─▶ queued ─next_due─▶ in flight ──────────────ended─▶ gone
                                      │  ▲
                                   crashed │ next_due, one at a time
                                      ▼  │
                                    suspects

Those in flight when the engine dies are suspects: any of them may have killed it. They go to the next engine
one at a time. A suspect is *cleared* when it has passed the point where the crash met it, that is with its
first new token, or with its end; only then the next one follows. Requests that were not in flight are
submitted when every suspect is cleared.

A suspect that an engine dies of a second time, uncleared, is failed if nothing else was in flight. If there
was, nobody can tell: it might have been one that was cleared too early. Then it is tried again, first and
alone.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from semipd.core.request import SeqId

Stage = Literal["waiting", "prefilling", "decoding", "finished"]
"""How far a request had come when the engine died."""


@dataclass(slots=True)
class _Suspect:
    """`crashes` it was in flight in, since it was last cleared. `rank` sorts those to be tried."""

    crashes: int
    rank: tuple[int, int]


class Resumption:
    """Told of every edge; asked what to submit."""

    def __init__(self) -> None:
        self._queued: OrderedDict[SeqId, None] = OrderedDict()
        self._untried: OrderedDict[SeqId, None] = OrderedDict()
        self._suspects: dict[SeqId, _Suspect] = {}
        self._in_flight: set[SeqId] = set()
        self.on_trial: SeqId | None = None
        """The one suspect in flight that is not cleared."""

    @property
    def num_suspects(self) -> int:
        return len(self._suspects)

    @property
    def num_held(self) -> int:
        """Requests that no engine has now."""
        return len(self._queued) + len(self._untried)

    def is_in_flight(self, seq: SeqId) -> bool:
        return seq in self._in_flight

    def arrived(self, seq: SeqId) -> None:
        self._queued[seq] = None

    def next_due(self) -> SeqId | None:
        """The request to submit now, which then is in flight; None: nobody's turn. For a ready engine."""
        if self.on_trial is not None:
            return None
        if self._untried:
            self.on_trial = seq = self._untried.popitem(last=False)[0]
        elif self._queued:
            seq = self._queued.popitem(last=False)[0]
        else:
            return None
        self._in_flight.add(seq)
        return seq

    def progressed(self, seq: SeqId) -> None:
        """The engine has emitted a token of it. Only the one on trial needs to be told."""
        if seq == self.on_trial:
            self._clear(seq)

    def ended(self, seq: SeqId) -> None:
        """Finished, failed or cancelled, in flight or not. Idempotent."""
        self._in_flight.discard(seq)
        self._queued.pop(seq, None)
        self._untried.pop(seq, None)
        self._clear(seq)

    def crashed(self, stages: Mapping[SeqId, Stage]) -> list[SeqId]:
        """The engine has died. `stages` of at least those in flight. Returns those that are to fail for it;
        they are forgotten."""
        was_alone = len(self._in_flight) == 1
        for seq in self._in_flight:
            before = self._suspects.get(seq)
            self._suspects[seq] = _Suspect((before.crashes if before else 0) + 1, _rank(seq, stages[seq]))
        on_trial, self.on_trial = self.on_trial, None
        self._in_flight.clear()
        culprits = []
        if on_trial is not None and was_alone and self._suspects[on_trial].crashes > 1:
            culprits = [on_trial]
            del self._suspects[on_trial]
        order = sorted(self._suspects.items(), key=lambda item: (-item[1].crashes, item[1].rank))
        self._untried = OrderedDict((seq, None) for seq, _ in order)
        return culprits

    def check_integrity(self) -> None:
        """AssertionError with the numbers on a mismatch."""
        groups = [set(self._queued), set(self._untried), self._in_flight]
        assert len(set.union(*groups)) == sum(map(len, groups)), f"a request stands in two places: {groups}"
        trial = set() if self.on_trial is None else {self.on_trial}
        assert set(self._suspects) == set(self._untried) | trial, (
            f"suspects {sorted(self._suspects)}, untried {sorted(self._untried)}, on trial {self.on_trial}"
        )
        assert trial <= self._in_flight, f"{self.on_trial} is on trial, but not in flight"

    def _clear(self, seq: SeqId) -> None:
        self._suspects.pop(seq, None)
        if seq == self.on_trial:
            self.on_trial = None


def _rank(seq: SeqId, stage: Stage) -> tuple[int, int]:
    """Prompts in work first, the newest before all: such a one is the likeliest culprit, and tried while
    nothing else is in flight its guilt is certain. Then the streams that clients see standing still, and last
    those that had not begun, which would take their seats; both oldest first."""
    match stage:
        case "prefilling":
            return 0, -seq
        case "decoding":
            return 1, seq
        case _:
            return 2, seq
