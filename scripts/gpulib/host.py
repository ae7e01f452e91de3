"""Drives a coordinator on a real device in this process, without daemon, sockets or tokenizer."""

import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from semipd.core.events import Event
from semipd.core.messages import Finished, Inbound, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.contract import Device
from semipd.engine.coordinator import Coordinator
from semipd.sim.outcomes import Outcome

IDLE_WAIT_S = 0.5


@dataclass
class Run:
    """What came out. Times are nanoseconds since the run's start; requests that `meddle` submits arrive when
    they are first heard of."""

    outcomes: dict[SeqId, Outcome] = field(default_factory=dict)
    tokens: dict[SeqId, list[int]] = field(default_factory=dict)
    logprobs: dict[SeqId, list[float]] = field(default_factory=dict)
    token_times_ns: dict[SeqId, list[int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    duration_ns: int = 0

    def inter_token_ms(self, seqs: Iterable[SeqId], after_ns: int = 0) -> list[float]:
        """Gaps between neighbouring tokens that came after a time."""
        gaps: list[float] = []
        for seq in seqs:
            times = [at for at in self.token_times_ns.get(seq, []) if at >= after_ns]
            gaps += [(later - earlier) / 1e6 for earlier, later in pairwise(times)]
        return gaps


class Host:
    """`meddle(now_ns)` may add messages to any turn: operators' commands, say."""

    def __init__(self, device: Device, settings: EngineSettings) -> None:
        self.device = device
        self.coordinator = Coordinator(device, settings)
        for state in (self.coordinator.prefill, self.coordinator.decode):
            state.lane.rebuild([])

    def run(
        self,
        requests: Iterable[Request],
        limit_s: float,
        meddle: Callable[[int], list[Inbound]] = lambda now_ns: [],
    ) -> Run:
        """Serve requests at their `arrival_ns`, counted from now, until all have ended or `limit_s` is over;
        what has not ended then stays unfinished in the outcomes."""
        run, start_ns = Run(), time.monotonic_ns()
        upcoming = iter(requests)
        request = next(upcoming, None)
        while True:
            now_ns = time.monotonic_ns()
            inbox = meddle(now_ns - start_ns)
            while request is not None and request.arrival_ns <= now_ns - start_ns:
                run.outcomes[request.seq] = Outcome.of(request)
                inbox.append(Submit(replace(request, arrival_ns=request.arrival_ns + start_ns)))
                request = next(upcoming, None)
            turn = self.coordinator.tick(now_ns, inbox)
            self._read(run, turn.outbox, start_ns)
            run.duration_ns = time.monotonic_ns() - start_ns
            if (turn.idle and request is None) or run.duration_ns > limit_s * 1e9:
                return run
            due_ns = None if request is None else request.arrival_ns + start_ns
            self._wait(turn.wake_at_ns, due_ns)

    def drain(self, limit_s: float) -> None:
        """After a run that was cut short: cancel nothing, wait until the lanes are empty."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            states = (self.coordinator.prefill, self.coordinator.decode)
            for state in states:
                for result in state.lane.poll(time.monotonic_ns()):
                    state.settle(result, time.monotonic_ns())
            if not any(state.inflight for state in states):
                return
            time.sleep(1e-3)
        raise TimeoutError(f"the lanes still work after {limit_s} s")

    def _read(self, run: Run, outbox: Iterable[object], start_ns: int) -> None:
        now_ns = time.monotonic_ns() - start_ns
        for message in outbox:
            match message:
                case StepTokens(seqs, tokens, entries):
                    for seq, token, entry in zip(seqs, tokens, entries or [None] * len(seqs), strict=True):
                        if entry is not None:
                            run.logprobs.setdefault(seq, []).append(entry.logprob)
                        outcome = run.outcomes.setdefault(seq, Outcome(now_ns))
                        outcome.next_tokens([now_ns]) if outcome.first_ns else outcome.first_token(now_ns)
                        run.tokens.setdefault(seq, []).append(token)
                        run.token_times_ns.setdefault(seq, []).append(now_ns)
                case Finished(seq, reason):
                    outcome = run.outcomes.setdefault(seq, Outcome(now_ns))
                    outcome.finished_ns, outcome.failed = now_ns, reason == "error"
                case Event():
                    run.events.append(message)

    def _wait(self, wake_at_ns: int | None, due_ns: int | None) -> None:
        ends = [at for at in (wake_at_ns, due_ns) if at is not None]
        left_s = min([IDLE_WAIT_S, *((at - time.monotonic_ns()) / 1e9 for at in ends)])
        select.select(self.device.files(), [], [], max(0.0, left_s))
