"""What an answer says of its cost: tokens counted, and with `include_timing` where the time went."""

from typing import NotRequired, TypedDict


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Timing(TypedDict):
    """With `include_timing`; docs/operations.md says from when to when. Null: did not happen."""

    queue_ms: float | None
    prefill_ms: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    total_ms: float
    preemptions: int
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    timing: NotRequired[Timing]
