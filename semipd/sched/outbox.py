"""What one turn of the loop has to say, in order."""

from typing import Any

from semipd.core.events import Event, EventKind
from semipd.core.messages import Outbound
from semipd.sched.sequence import Sequence


class Outbox:
    """Collects the messages of one tick; `now_ns` stamps its events."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.messages: list[Outbound] = []

    def send(self, message: Outbound) -> None:
        self.messages.append(message)

    def event(self, kind: EventKind, sequence: Sequence | None, **data: Any) -> None:
        seq, request_id = (None, "") if sequence is None else (sequence.seq, sequence.request.request_id)
        self.messages.append(Event(self.now_ns, kind, seq, request_id, data))
