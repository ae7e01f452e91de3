"""Hosts a coordinator on a real device in this process: real time, real lanes, no daemon."""

import select
import time
from dataclasses import dataclass, field

from semipd.core.events import Event
from semipd.core.messages import Finished, Inbound, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.contract import Device
from semipd.engine.coordinator import Coordinator


@dataclass
class LiveRun:
    """`tokens` and their arrival times per sequence, in the order the coordinator emitted them."""

    device: Device
    settings: EngineSettings
    tokens: dict[SeqId, list[int]] = field(default_factory=dict)
    times_ns: dict[SeqId, list[int]] = field(default_factory=dict)
    finished: dict[SeqId, Finished] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.device, self.settings)
        for state in (self.coordinator.prefill, self.coordinator.decode):
            state.lane.rebuild([])

    def turn(self, inbox: list[Inbound] | None = None, limit_s: float = 30.0) -> bool:
        """One tick, then wait for a lane. False when idle."""
        turn = self.coordinator.tick(time.monotonic_ns(), inbox or [])
        for message in turn.outbox:
            match message:
                case StepTokens(seqs, tokens):
                    for seq, token in zip(seqs, tokens, strict=True):
                        self.tokens.setdefault(seq, []).append(token)
                        self.times_ns.setdefault(seq, []).append(time.monotonic_ns())
                case Finished(seq):
                    self.finished[seq] = message
                case Event():
                    self.events.append(message)
        if turn.idle:
            self.coordinator.check_integrity()
            return False
        timeout_s = limit_s
        if turn.wake_at_ns is not None:
            timeout_s = min(limit_s, max(0.0, (turn.wake_at_ns - time.monotonic_ns()) / 1e9))
        ready, _, _ = select.select(self.device.files(), [], [], timeout_s)
        assert ready or timeout_s < limit_s, f"no lane answered within {limit_s} s"
        return True

    def run(self, requests: list[Request]) -> dict[SeqId, list[int]]:
        going = self.turn([Submit(request) for request in requests])
        while going:
            going = self.turn()
        return self.tokens
