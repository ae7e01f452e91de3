"""Requests, one by one."""

from typing import Literal, NotRequired, TypedDict

from semipd.core.events import EventRow, FinishReason
from semipd.core.request import CancelResult, Priority, RequestStage
from semipd.core.state.partition import TargetsDocument


class RequestRow(TypedDict):
    """One sequence of a request: facts and times, never its text. `key`: the name of the client's key.
    `priority`: batch for the class of that name. `in_background`: it lets
    all pass that can be in time; while it waits so, `expected_start_s` predicts when its prompt is begun.
    `itl_ms`: percentile of its own inter-token times. Null: did
    not happen. `events`: only when one request is asked for."""

    id: str
    key: str | None
    seq: int
    state: RequestStage
    finish_reason: FinishReason | None
    error_code: str | None
    arrived_at_s: float
    age_ms: float
    in_background: bool
    expected_start_s: float | None
    priority: Priority
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    blocks: int
    preemptions: int
    queue_ms: float | None
    prefill_ms: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    itl_ms: float | None
    service_class: str
    targets: TargetsDocument
    accept_late: bool
    events: NotRequired[list[EventRow]]


class RequestList(TypedDict):
    object: Literal["list"]
    data: list[RequestRow]


class RequestDetails(TypedDict):
    """`sequences`: one for each choice."""

    id: str
    sequences: list[RequestRow]


class CancelAnswer(TypedDict):
    id: str
    result: CancelResult
