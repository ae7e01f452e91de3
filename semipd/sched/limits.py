"""What bounds requests and steps."""

from dataclasses import dataclass

from semipd.core.errors import SemipdError
from semipd.core.plan import blocks_for
from semipd.sched.flight import Chunk
from semipd.sched.sequence import Sequence

MAX_STEP_ALTERNATIVES = 2**18
"""Of the prompt tokens of one step, each counted as the one that wants most: what a lane returns of it is
bounded so. A single token may want more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`block_size`, `max_decode_tokens`: see DeviceInfo. `max_late_ns`: see sched.planning."""

    max_model_len: int
    max_num_seqs: int
    num_blocks: int
    block_size: int
    max_decode_tokens: int = 1
    max_late_ns: int = 10**18


def why_impossible(sequence: Sequence, limits: Limits, num_usable_blocks: int) -> SemipdError | None:
    """The refusal of a request that can never fit; None when it can."""
    most_tokens = sequence.max_total_tokens + limits.max_decode_tokens - 1
    need, have = blocks_for(most_tokens, limits.block_size), num_usable_blocks
    num_prompt, longest = len(sequence.request.prompt), limits.max_model_len
    if num_prompt >= longest:
        return SemipdError(
            "context_length_exceeded",
            f"The prompt has {num_prompt} tokens; max_model_len {longest} leaves no room for output.",
            "Shorten the prompt.",
        )
    if need > have:
        return SemipdError(
            "request_too_large",
            f"The request may reach {sequence.max_total_tokens} tokens, which need {need} KV blocks of "
            f"{limits.block_size}; the whole pool has {have}.",
            "Lower max_tokens or raise kv.bytes.",
        )
    return None


def room_tokens(budget_tokens: int, wanted: int | None, chunks: list[Chunk]) -> int:
    """Tokens that a chunk may have; fewer than the budget when it and the step's others want many
    alternatives."""
    if wanted is None:
        return budget_tokens
    others = [segment for _, segment in chunks if segment.prompt_logprobs is not None]
    most = max(wanted, 1, *(segment.prompt_logprobs or 0 for segment in others))
    room = MAX_STEP_ALTERNATIVES // most - sum(segment.length for segment in others)
    return min(budget_tokens, room if others else max(room, 1))
