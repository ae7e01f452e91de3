"""The discrete-event simulator: the product's coordinator under a virtual clock."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from semipd.core.events import Event
from semipd.core.messages import Finished, Outbound, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.core.slo import ITL_PERCENTILE
from semipd.devices.contract import Device
from semipd.engine.coordinator import Coordinator
from semipd.sim.outcomes import Outcome

MAX_TICKS_AT_ONE_TIME = 1000
"""A coordinator that asks to be woken now, again and again, is a bug and not a long simulation."""


@dataclass(slots=True)
class Ledger:
    """Outcomes of all requests so far, and how many can no longer meet their targets.

    `max_misses`: the run is given up beyond it; None: never. `itl_percentile`: see Outcome.
    """

    max_misses: int | None = None
    itl_percentile: float = ITL_PERCENTILE
    outcomes: dict[SeqId, Outcome] = field(default_factory=dict)
    num_misses: int = 0
    _seqs: tuple[SeqId, ...] = ()
    _times_ns: list[int] = field(default_factory=list)  # of steps that gave a token to each of `_seqs`

    @property
    def hopeless(self) -> bool:
        return self.max_misses is not None and self.num_misses > self.max_misses

    def arrived(self, request: Request) -> None:
        assert request.seq not in self.outcomes, f"seq {request.seq} arrives twice"
        self.outcomes[request.seq] = Outcome.of(request, self.itl_percentile)

    def first_token(self, seq: SeqId, now_ns: int) -> None:
        outcome = self.outcomes[seq]
        assert not outcome.first_ns, f"seq {seq} has two first tokens"
        outcome.first_token(now_ns)
        self._judge(outcome, outcome.is_late)

    def step(self, seqs: tuple[SeqId, ...], now_ns: int) -> None:
        """A step's tokens, see StepTokens. Those of a batch that does not change (the same tuple each time)
        are counted together, when it has changed or somebody needs them."""
        if seqs is self._seqs:
            self._times_ns.append(now_ns)
            return
        self.count_tokens()
        outcomes = self.outcomes
        for seq in seqs:
            outcome = outcomes[seq]
            if not outcome.first_ns:
                self.first_token(seq, now_ns)
            elif outcome.targets.itl_ms is None:
                outcome.tokens += 1
            else:
                outcome.next_tokens([now_ns])
        self._seqs = seqs if len(set(seqs)) == len(seqs) else ()

    def count_tokens(self) -> None:
        """Every outcome is up to date."""
        times_ns, self._times_ns = self._times_ns, []
        if times_ns:
            for seq in self._seqs:
                self.outcomes[seq].next_tokens(times_ns)

    def ended(self, finished: Finished, now_ns: int) -> None:
        self.count_tokens()
        outcome = self.outcomes[finished.seq]
        assert not outcome.finished_ns, f"seq {finished.seq} ends twice"
        outcome.finished_ns = now_ns
        outcome.failed = finished.reason == "error"
        outcome.error = finished.code if outcome.failed else ""
        outcome.cached_tokens = finished.cached_tokens
        self._judge(outcome, not outcome.met)

    def _judge(self, outcome: Outcome, missed: bool) -> None:
        if missed and not outcome.missed:
            outcome.missed = True
            self.num_misses += 1


class System(Protocol):
    """What is simulated: one engine, or several behind one door. `idle`: nothing lives in it."""

    @property
    def wake_at_ns(self) -> int | None: ...

    @property
    def idle(self) -> bool: ...

    def tick(self, now_ns: int, requests: list[Request]) -> None: ...


class Engine:
    """A coordinator and what it says, read into a ledger. One tick at a time, at times given from outside."""

    def __init__(
        self,
        device: Device,
        settings: EngineSettings,
        ledger: Ledger,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.coordinator = Coordinator(device, settings)
        self.wake_at_ns: int | None = None
        self.idle = True
        self.coordinators = (self.coordinator,)
        self._ledger = ledger
        self._on_event = on_event

    def tick(self, now_ns: int, requests: list[Request]) -> None:
        turn = self.coordinator.tick(now_ns, [Submit(request) for request in requests])
        self.wake_at_ns, self.idle = turn.wake_at_ns, turn.idle
        if turn.outbox:
            self._read(turn.outbox, now_ns)

    def _read(self, outbox: list[Outbound], now_ns: int) -> None:
        for message in outbox:
            if type(message) is StepTokens:
                self._ledger.step(message.seqs, now_ns)
            elif type(message) is Finished:
                self._ledger.ended(message, now_ns)
            elif type(message) is Event and self._on_event is not None:
                self._on_event(message)


def simulate(engine: System, arrivals: Iterator[Request], ledger: Ledger) -> bool:
    """Run until every arrival has ended; the clock jumps to the next arrival or the device's next event.

    Returns False when it gave up because of `ledger.max_misses`.
    """
    clock = _Clock()
    upcoming = next(arrivals, None)
    while not ledger.hopeless and (upcoming is not None or not engine.idle):
        due_ns = engine.wake_at_ns
        if upcoming is not None and (due_ns is None or upcoming.arrival_ns < due_ns):
            due_ns = upcoming.arrival_ns
        assert due_ns is not None, "nothing will ever happen, yet requests are waiting"
        now_ns = clock.move_to(due_ns)
        requests: list[Request] = []
        while upcoming is not None and upcoming.arrival_ns <= now_ns:
            ledger.arrived(upcoming)
            requests.append(upcoming)
            upcoming = next(arrivals, None)
        engine.tick(now_ns, requests)
    ledger.count_tokens()
    return not ledger.hopeless


@dataclass(slots=True)
class _Clock:
    """Never goes back, and notices when it does not go on."""

    now_ns: int = 0
    repeats: int = 0

    def move_to(self, time_ns: int) -> int:
        if time_ns > self.now_ns:
            self.now_ns, self.repeats = time_ns, 0
        else:
            self.repeats += 1
            assert self.repeats < MAX_TICKS_AT_ONE_TIME, f"time stands still at {self.now_ns} ns"
        return self.now_ns
