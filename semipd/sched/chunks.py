"""The next chunk of a prompt."""

from semipd.core.plan import Segment
from semipd.sched.flight import Chunk
from semipd.sched.limits import room_tokens
from semipd.sched.sequence import Sequence


def take_chunk(sequence: Sequence, budget_tokens: int, chunks: list[Chunk]) -> int:
    """Mark a chunk of at most so many tokens as launched and append it. Returns its length; 0: no room in the
    step."""
    start = sequence.num_scheduled
    wanted = None if sequence.may_reuse else sequence.request.params.prompt_logprobs
    length = min(len(sequence.tokens) - start, room_tokens(budget_tokens, wanted, chunks))
    if length <= 0:
        return 0
    sample = start + length == len(sequence.tokens)
    chunks.append((sequence, Segment(sequence.seq, start, length, sample, wanted)))
    sequence.num_scheduled += length
    sequence.num_inflight += 1
    return length
