"""A request history on a clock that tests move."""

from dataclasses import dataclass
from typing import Any

from semipd.core.events import Event, EventKind
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import DEFAULT_SERVICE, Terms
from semipd.daemon.history.metrics import Metrics
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory
from semipd.system import clock

MS = 1_000_000


@dataclass
class Clock:
    now_ns: int = 1000 * MS

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, ms: float) -> None:
        self.now_ns += int(ms * MS)


class Told:
    """A history and the clock it runs on."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.history = RequestHistory(clock.Clock(self.clock))
        self.metrics = Metrics(self.history)
        self._last_seq = 0

    def arrive(
        self,
        request_id: str = "r",
        prompt_tokens: int = 5,
        max_tokens: int = 9,
        service: Service = DEFAULT_SERVICE,
    ) -> RequestRecord:
        self._last_seq += 1
        params = SamplingParams(max_tokens=max_tokens, seed=1)
        prompt = [1] * prompt_tokens
        request = Request(SeqId(self._last_seq), request_id, prompt, params, self.clock.now_ns)
        return self.history.arrived(request, Terms(service=service))

    def engine(self, record: RequestRecord, kind: EventKind, **data: Any) -> None:
        self.history.noted(Event(self.clock.now_ns, kind, record.seq, record.request_id, data))

    def step(self, *records: RequestRecord) -> None:
        self.history.stepped(records, self.clock.now_ns)

    def send(self, record: RequestRecord, num_tokens: int, text: bool = True) -> None:
        self.history.sent(record, num_tokens, has_text=text)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.history.journal.read(0, 10_000).entries]
