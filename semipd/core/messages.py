"""What daemon and engine say to each other. The wire room turns these into frames."""

from dataclasses import dataclass, field
from typing import Any

from semipd.core.events import Event, FinishReason
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """Idempotent; answered by Finished(reason=cancelled) unless the sequence is already gone."""

    seq: SeqId


@dataclass(frozen=True, slots=True)
class GetStatus:
    """A round trip through the coordinator loop: liveness and numbers in one."""

    nonce: int


Inbound = Submit | Cancel | GetStatus


@dataclass(frozen=True, slots=True)
class StepTokens:
    """All tokens of one step, aligned with `seqs`."""

    seqs: tuple[SeqId, ...]
    tokens: list[int]
    logprobs: list[TokenLogprobs | None] | None = None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Entries for the next prompt tokens of `seq`, in order, starting at prompt token 1."""

    seq: SeqId
    entries: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Finished:
    """The engine forgets `seq`. `stop_token` is set when a stop token ended it; error fields on error."""

    seq: SeqId
    reason: FinishReason
    stop_token: int | None = None
    cached_tokens: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to GetStatus. `data` is plain maps, lists, numbers and strings."""

    nonce: int
    data: dict[str, Any] = field(default_factory=dict)


Outbound = StepTokens | PromptLogprobs | Finished | Event | Status
