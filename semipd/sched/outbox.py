"""The messages of one turn of the loop, in order."""

from semipd.core.events import Event, Told
from semipd.core.messages import Outbound, PromptLogprobs
from semipd.core.plan import Segment, TokenLogprobs
from semipd.sched.sequence import Sequence

MESSAGE_ALTERNATIVES = 2**13
"""Of prompt tokens in one message to the daemon, whose loop takes a message at a time. One token may have
more."""


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


def send_prompt_logprobs(
    sequence: Sequence, segment: Segment, entries: list[TokenLogprobs], out: Outbox
) -> None:
    count = max(MESSAGE_ALTERNATIVES // max(segment.prompt_logprobs or 0, 1), 1)
    for start in range(0, len(entries), count):
        out.send(PromptLogprobs(sequence.seq, entries[start : start + count]))
