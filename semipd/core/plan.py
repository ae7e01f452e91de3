"""Plans and results: the only things that cross between the coordinator and a lane."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split

PADDING_BLOCK = 0
"""Never handed out: padded writes and reads go there."""


INVALID_LOGITS = "invalid_logits"
"""Code of a sequence whose step yields NaN or infinity, or leaves no token to choose."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """KV blocks that hold so many tokens; `block_size`: see DeviceInfo."""
    return -(-num_tokens // block_size)


class Segment(NamedTuple):
    """A chunk of a resident sequence: tokens [start, start + length) are computed and their KV written.

    `sample` is true when the chunk ends at the sequence's newest token: its logits yield the next token.
    `prompt_logprobs`: number of alternatives wanted for the prompt tokens this chunk predicts, or None.
    """

    seq: SeqId
    start: int
    length: int
    sample: bool
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """A sequence becomes resident in a lane, with its whole history and block table."""

    seq: SeqId
    token_ids: list[int]  # prompt and everything sampled so far
    num_prompt_tokens: int
    params: SamplingParams
    block_table: list[int]


class StepPlan(NamedTuple):
    """One step of one lane. Applied in this order: leaves, joins, new_blocks, then one forward pass.

    `decode` names residents that advance by one token, or by up to DeviceInfo.max_decode_tokens: each
    computes its newest token (the lane feeds its own samples back, so token ids do not travel) and samples
    what follows; its block table has slots for all of it. While the batch is
    unchanged the coordinator passes the same tuple object. `segments` are prefill chunks.
    A merged step has both. KV of token i goes to slot i % block_size of block
    block_table[i // block_size].
    """

    step_id: int
    split: Split
    decode: tuple[SeqId, ...] = ()
    segments: tuple[Segment, ...] = ()
    joins: tuple[Join, ...] = ()
    leaves: tuple[SeqId, ...] = ()
    new_blocks: tuple[tuple[SeqId, tuple[int, ...]], ...] = ()


class TokenLogprobs(NamedTuple):
    """Log-probabilities (natural log) of the raw logits, before penalties and temperature.

    `rank`: how many tokens of the vocabulary are at least as likely, itself included (vLLM's definition, so
    the last of several equals).
    """

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]  # alternatives, most likely first
    rank: int


class StepResult(NamedTuple):
    """A finished step. `tokens` are ordered as `plan.decode`, then sampling segments in plan order: those of
    each sequence, oldest first; one for a segment. Whatever stands behind a sequence's end is ignored.

    `logprobs` is None when no sequence of the step asked, else aligned with `tokens`, with None for each
    sequence that did not ask.
    `prompt_logprobs`: per sequence, entries for prompt tokens start + 1 .. min(start + length, last
    prompt token): logits at position i predict token i + 1, and prompt token 0 has no prediction.
    `busy_ns`: time the lane spent on the step.
    `mixed`: part of it ran under another split than the plan's, so that it says nothing about either.
    `failed`: sequences that cannot go on, with the code of each; None when there are none. Their tokens mean
    nothing, they have no log-probabilities, and the KV that this step wrote for them must not be read.
    """

    step_id: int
    tokens: Sequence[tuple[int, ...]]
    busy_ns: int
    logprobs: Sequence[tuple[TokenLogprobs, ...] | None] | None = None
    prompt_logprobs: dict[SeqId, list[TokenLogprobs]] | None = None
    mixed: bool = False
    failed: dict[SeqId, str] | None = None

    @classmethod
    def one_each(
        cls,
        step_id: int,
        tokens: Iterable[int],
        busy_ns: int,
        logprobs: Iterable[TokenLogprobs | None] | None = None,
        prompt_logprobs: dict[SeqId, list[TokenLogprobs]] | None = None,
        mixed: bool = False,
        failed: dict[SeqId, str] | None = None,
    ) -> "StepResult":
        """Of a step that yields one token for each sequence; `logprobs` is aligned with the tokens."""
        runs = list(zip(tokens, strict=True))
        entries = None if logprobs is None else [None if e is None else (e,) for e in logprobs]
        return cls(step_id, runs, busy_ns, entries, prompt_logprobs, mixed, failed)
