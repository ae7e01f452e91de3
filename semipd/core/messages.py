"""What daemon and engine say to each other. The wire room turns these into frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from semipd.core.errors import Refusal
from semipd.core.events import Event, FinishReason
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.slo import Targets
from semipd.core.split import PartitionMode
from semipd.core.state.engine import EngineStatus
from semipd.core.state.partition import (
    ClassAnswer,
    EngineChangeAnswer,
    EnginePartitionDocument,
    SloDocument,
)

A = TypeVar("A")


class EngineQuestion(Generic[A]):
    """A message with a nonce, which a Status with an A in it answers."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """Idempotent; answered by Finished(reason=cancelled) unless the sequence is already gone."""

    seq: SeqId


@dataclass(frozen=True, slots=True)
class GetStatus(EngineQuestion[EngineStatus]):
    """A round trip through the coordinator loop: liveness and numbers in one."""

    nonce: int


@dataclass(frozen=True, slots=True)
class GetPartition(EngineQuestion[EnginePartitionDocument]):
    """Partition control with its table, history and decisions."""

    nonce: int


@dataclass(frozen=True, slots=True)
class SetPartition(EngineQuestion[EngineChangeAnswer]):
    """Answered by what was asked, and what was granted. `actor` and `reason` go into the history.

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
class SetSlo(EngineQuestion[SloDocument]):
    """`targets`: some fields of core.slo.Slo; none only asks."""

    nonce: int
    targets: dict[str, float]
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SetClass(EngineQuestion[ClassAnswer]):
    """The targets of a service class, not of `default`, are `after` from now on. Requests under way that have
    `before` get them too; others have brought their own."""

    nonce: int
    service_class: str
    before: Targets
    after: Targets
    actor: str
    reason: str = ""


Inbound = Submit | Cancel | GetStatus | GetPartition | SetPartition | SetSlo | SetClass


class StepTokens(NamedTuple):
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
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ExpectedStarts:
    """When prompts of the background will be begun, as predicted (CLOCK_MONOTONIC), unless others come. Sent
    now and then, for all that wait there."""

    seqs: tuple[SeqId, ...]
    at_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to an EngineQuestion: `data` is of its type, and empty when it is refused."""

    nonce: int
    data: Mapping[str, Any] = field(default_factory=dict)
    refused: Refusal | None = None


Outbound = StepTokens | PromptLogprobs | Finished | ExpectedStarts | Event | Status
