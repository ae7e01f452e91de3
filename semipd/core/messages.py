"""What daemon and engine say to each other. The wire room turns these into frames."""

from dataclasses import dataclass, field
from typing import Any

from semipd.core.events import Event, FinishReason
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.split import PartitionMode


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


@dataclass(frozen=True, slots=True)
class GetPartition:
    """Answered by Status: partition control with its table, history and decisions."""

    nonce: int


@dataclass(frozen=True, slots=True)
class SetPartition:
    """Answered by Status: what was asked, what was granted. `actor` and `reason` go into the history.

    `prefill_units` or `decode_units` belong to the mode `fixed`; `expires_s` (back to `auto`) to `fixed` and
    `off`. With `dry_run` nothing changes.
    """

    nonce: int
    mode: PartitionMode
    actor: str
    reason: str = ""
    prefill_units: int | None = None
    decode_units: int | None = None
    expires_s: float | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class SetSlo:
    """Answered by Status. `targets`: some fields of partition.interface.Slo; none only asks."""

    nonce: int
    targets: dict[str, float]
    actor: str
    reason: str = ""


Inbound = Submit | Cancel | GetStatus | GetPartition | SetPartition | SetSlo


@dataclass(frozen=True, slots=True)
class StepTokens:
    """All tokens of one step. `seqs` names the sequence of each, one that got several as often, in a row.
    `logprobs` is aligned with the tokens, or None when no sequence asked."""

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
    """Answer to a message with a nonce. `data` is plain maps, lists, numbers and strings; times in it
    (`*_at_ns`) are CLOCK_MONOTONIC. `refused` is None, or the code, message, hint and param of a refusal."""

    nonce: int
    data: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] | None = None


Outbound = StepTokens | PromptLogprobs | Finished | Event | Status
