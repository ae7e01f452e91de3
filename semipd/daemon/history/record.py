"""One sequence of a request: what happened to it and when, never its text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from semipd.core.events import FinishReason
from semipd.core.request import Priority, RequestStage, SeqId
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import DEFAULT_SERVICE
from semipd.daemon.history.gaps import TokenGaps
from semipd.daemon.history.journal import Entry
from semipd.daemon.history.usage import Timing


@dataclass(slots=True, eq=False)
class RequestRecord:
    """Times are CLOCK_MONOTONIC in ns, 0 until they happen.

    "Sent" is when a token leaves the daemon: its text has been written to the client's connection or, for an
    answer that is sent as a whole, has been added to it. `expected_start_ns`: when its prompt will be begun,
    while it waits in the background. `is_placed`: an engine has it in its KV pool.
    `num_choices`: see access.terms.Terms.
    """

    request_id: str
    seq: SeqId
    prompt_tokens: int
    max_tokens: int
    arrival_ns: int
    owner: str = ""
    service: Service = DEFAULT_SERVICE
    num_choices: int = 1
    state: RequestStage = "waiting"
    is_placed: bool = False
    cached_tokens: int = 0
    output_tokens: int = 0
    sent_tokens: int = 0
    preemptions: int = 0
    in_background: bool = False
    expected_start_ns: int = 0
    admitted_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    first_sent_ns: int = 0
    last_sent_ns: int = 0
    finished_ns: int = 0
    finish_reason: FinishReason | None = None
    error_code: str | None = None
    timeline: list[Entry] = field(default_factory=list)
    gaps: TokenGaps = field(init=False)

    def __post_init__(self) -> None:
        self.gaps = TokenGaps(self.service.targets.itl_ms)

    @property
    def priority(self) -> Priority:
        return self.service.priority

    @property
    def tokens(self) -> int:
        """The prompt's and those generated so far."""
        return self.prompt_tokens + self.output_tokens

    @property
    def queue_ms(self) -> float | None:
        """From arrival to the first admission to the KV pool."""
        return _between_ms(self.arrival_ns, self.admitted_ns)

    @property
    def prefill_ms(self) -> float | None:
        """From the first admission to the engine's first token."""
        return _between_ms(self.admitted_ns, self.first_token_ns)

    @property
    def inference_ms(self) -> float | None:
        """From the first admission to the engine's last token."""
        return _between_ms(self.admitted_ns, self.last_token_ns)

    @property
    def ttft_ms(self) -> float | None:
        """From arrival at the daemon to the first token leaving it."""
        return _between_ms(self.arrival_ns, self.first_sent_ns)

    @property
    def tpot_ms(self) -> float | None:
        """(last - first) / (tokens - 1); a request of one token has none."""
        if self.sent_tokens < 2 or not self.first_sent_ns:
            return None
        return (self.last_sent_ns - self.first_sent_ns) / 1e6 / (self.sent_tokens - 1)

    def total_ms(self, now_ns: int) -> float:
        """From arrival to the end, or until now."""
        return ((self.finished_ns or now_ns) - self.arrival_ns) / 1e6


def timing_to_wire(records: Sequence[RequestRecord], now_ns: int) -> Timing:
    """`usage.timing` of one request. Of several choices: the one whose first token left first, the mean TPOT,
    the longest total, and the sums of preemptions and cached tokens. What has not left does so now."""
    first = min(records, key=lambda record: record.first_sent_ns or now_ns)
    first_sent_ns = first.first_sent_ns or now_ns
    tpots_ms = [record.tpot_ms for record in records if record.tpot_ms is not None]
    return {
        "queue_ms": first.queue_ms,
        "prefill_ms": first.prefill_ms,
        "ttft_ms": _between_ms(first.arrival_ns, first_sent_ns),
        "tpot_ms": sum(tpots_ms) / len(tpots_ms) if tpots_ms else None,
        "total_ms": max(record.total_ms(now_ns) for record in records),
        "preemptions": sum(record.preemptions for record in records),
        "cached_tokens": sum(record.cached_tokens for record in records),
    }


def _between_ms(start_ns: int, end_ns: int) -> float | None:
    return (end_ns - start_ns) / 1e6 if start_ns and end_ns else None
