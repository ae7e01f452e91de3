"""What the load generator notes about one request, and the numbers that follow from it."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

Outcome = Literal["ok", "refused", "failed", "timed_out", "cancelled"]


@dataclass(slots=True)
class Record:
    """One request that was sent. Times are seconds since the start of the run.

    Attributes:
        due_s: when the plan wanted it sent; None in a closed loop.
        event_times_s: when each stream event that brought tokens came in. One event may bring several.
        output_tokens: what the server counted (`usage`); the number of events when it did not say.
        has_usage: the server did say.
        outcome: "refused" is an answer that says no (HTTP 4xx or 503, or an error before the first token
            on the socket); "failed" is everything else that ends without all tokens; "cancelled" is ours.
        code: the server's error code, or ours for what it could not tell; empty when ok.
    """

    index: int
    asked_prompt_tokens: int
    asked_output_tokens: int
    due_s: float | None = None
    sent_s: float = 0.0
    end_s: float = 0.0
    event_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False
    outcome: Outcome = "failed"
    code: str = ""
    message: str = ""

    @property
    def ttft_s(self) -> float | None:
        """From sending, the connection included, to the first token."""
        return self.event_times_s[0] - self.sent_s if self.event_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """From sending to the last token."""
        return self.event_times_s[-1] - self.sent_s if self.event_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """(last - first) / (tokens - 1); None for a request of one token."""
        if self.output_tokens < 2 or not self.event_times_s:
            return None
        return (self.event_times_s[-1] - self.event_times_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between events that brought tokens."""
        return [later - earlier for earlier, later in pairwise(self.event_times_s)]

    @property
    def send_lag_s(self) -> float | None:
        """How late the generator itself was."""
        return None if self.due_s is None else self.sent_s - self.due_s

    def take_usage(self, usage: dict[str, Any]) -> None:
        """OpenAI's usage object; the last one counts."""
        self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        self.output_tokens = int(usage.get("completion_tokens") or 0)
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = int(details.get("cached_tokens") or 0)
        self.has_usage = True

    def close(self, outcome: Outcome, now_s: float, code: str = "", message: str = "") -> None:
        self.outcome, self.end_s, self.code, self.message = outcome, now_s, code, message
        if not self.has_usage:
            self.output_tokens = len(self.event_times_s)

    def to_json(self) -> dict[str, Any]:
        """Times in milliseconds; events relative to sending."""
        data: dict[str, Any] = {
            "index": self.index,
            "outcome": self.outcome,
            "due_ms": _ms(self.due_s),
            "sent_ms": _ms(self.sent_s),
            "ttft_ms": _ms(self.ttft_s),
            "tpot_ms": _ms(self.tpot_s),
            "e2e_ms": _ms(self.e2e_s),
            "asked_prompt_tokens": self.asked_prompt_tokens,
            "asked_output_tokens": self.asked_output_tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "event_ms": [_ms(time_s - self.sent_s) for time_s in self.event_times_s],
        }
        return data | ({"code": self.code, "message": self.message} if self.code else {})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
