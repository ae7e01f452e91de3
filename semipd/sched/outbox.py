"""The messages of one turn of the loop, in order."""

from semipd.core.events import Event, Told
from semipd.core.messages import Outbound
from semipd.sched.sequence import Sequence


class Outbox:
    """Collects the messages of one tick; `now_ns` stamps its events."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.messages: list[Outbound] = []

    def send(self, message: Outbound) -> None:
        self.messages.append(message)

    def event(self, told: Told, sequence: Sequence | None = None) -> None:
        """`sequence`: None when it is about no request."""
        seq, request_id = (None, "") if sequence is None else (sequence.seq, sequence.request.request_id)
        self.messages.append(Event(self.now_ns, told.kind, seq, request_id, told.data))
