"""Settling: what a finished step means for each of its sequences.

Pure: it keeps the counts of the sequences and says what follows; the scheduler moves sequences and blocks.
"""

from collections.abc import Sequence as Aligned
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from semipd.core.messages import StepTokens
from semipd.core.plan import Segment, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.sched.flight import Flight
from semipd.sched.sequence import Sequence


class Ending(NamedTuple):
    """A sequence that has all its tokens. `stop_token` is None when it ended by its length."""

    sequence: Sequence
    stop_token: int | None


@dataclass(slots=True)
class Settled:
    """Attributes:
    tokens: those that count; None: none does.
    prompt_logprobs: entries that no earlier step has yielded.
    computed: sequences with a chunk or a block more, whose KV may now be found as a prefix.
    started: sequences whose prompt is computed and has yielded a new token.
    first: those of them that never had one, nor from an earlier engine.
    ended: sequences to be finished.
    withdrawn: sequences preempted or ended while the step was in flight: it may touch their blocks no more.
    """

    tokens: StepTokens | None
    prompt_logprobs: list[tuple[Sequence, Segment, list[TokenLogprobs]]]
    computed: list[Sequence]
    started: list[Sequence]
    first: list[Sequence]
    ended: list[Ending]
    withdrawn: list[Sequence]


def settle(flight: Flight, result: StepResult, block_size: int, max_decode_tokens: int) -> Settled:
    """Account for every sequence of the step. Several tokens of one count up to the one that ends it."""
    settled = Settled(None, [], [], [], [], [], [])
    _check_whole(flight, result)
    counts = _settle_decodes(flight.decodes, result.tokens, block_size, max_decode_tokens, settled)
    if flight.chunks or counts:
        each = [counts.get(seq, 1) for seq in flight.plan.decode] if counts else [1] * len(flight.decodes)
        each += _settle_chunks(flight, result, settled)
        settled.tokens = _step_tokens(flight, result, each)
    elif flight.decodes:
        logprobs = None if result.logprobs is None else [run[0] if run else None for run in result.logprobs]
        tokens = list(chain.from_iterable(result.tokens))
        settled.tokens = StepTokens(flight.plan.decode, tokens, logprobs)
    return settled


def _check_whole(flight: Flight, result: StepResult) -> None:
    """A lane that leaves a sequence out would leave it in flight for ever."""
    wanted = len(flight.decodes)
    if flight.chunks:
        wanted += sum([segment.sample for _, segment in flight.chunks])
    found = len(result.tokens), wanted if result.logprobs is None else len(result.logprobs)
    assert found == (wanted, wanted), f"step {result.step_id}: {found} results of {wanted} sequences"


def _settle_decodes(
    decodes: list[Sequence],
    tokens: Aligned[tuple[int, ...]],
    block_size: int,
    max_decode_tokens: int,
    settled: Settled,
) -> dict[SeqId, int]:
    """How many tokens count of each sequence that has not exactly one, or whose end drops some. A loop almost
    without calls: it runs for each token of a step."""
    counts: dict[SeqId, int] = {}
    for sequence, new_tokens in zip(decodes, tokens, strict=False):  # those of chunks follow
        sequence.num_inflight -= 1
        if sequence.phase != "decoding":
            settled.withdrawn.append(sequence)
            counts[sequence.seq] = 0
            continue
        sequence.tokens.extend(new_tokens)
        count = len(new_tokens)
        computed = sequence.num_computed + count
        stop_ids = sequence.stop_ids
        if computed >= sequence.max_computed or (stop_ids and not stop_ids.isdisjoint(new_tokens)):
            count = counts[sequence.seq] = _find_end(sequence, new_tokens, settled)
            computed = sequence.num_computed + count
        sequence.num_computed = computed
        if computed % block_size < count:
            settled.computed.append(sequence)
        if count != max_decode_tokens:
            sequence.num_scheduled -= max_decode_tokens - count
        if count != 1:
            counts[sequence.seq] = count
    return counts


def _find_end(sequence: Sequence, new_tokens: tuple[int, ...], settled: Settled) -> int:
    """How many of the tokens just appended count: up to the one that ends the sequence. Drops the rest."""
    own = sequence.tokens
    num_before = len(own) - len(new_tokens)
    min_total = len(sequence.request.prompt) + sequence.request.params.min_tokens
    for count, token in enumerate(new_tokens, 1):
        stops = token in sequence.stop_ids and num_before + count >= min_total
        if stops or num_before + count >= sequence.max_total_tokens:
            settled.ended.append(Ending(sequence, token if stops else None))
            del own[num_before + count :]
            return count
    return len(new_tokens)


def _settle_chunks(flight: Flight, result: StepResult, settled: Settled) -> list[int]:
    """How many tokens of each sampling chunk count: one or none."""
    counts: list[int] = []
    sampled = iter(result.tokens[len(flight.decodes) :])
    for sequence, segment in flight.chunks:
        sequence.num_inflight -= 1
        new_tokens = next(sampled) if segment.sample else ()
        is_live = sequence.phase == "prefilling"
        if segment.sample:
            counts.append(int(is_live))
        if not is_live:
            settled.withdrawn.append(sequence)
            continue
        sequence.num_computed = segment.start + segment.length
        settled.computed.append(sequence)
        _take_prompt_logprobs(sequence, segment, result, settled)
        if segment.sample:
            sequence.tokens += new_tokens
            _find_end(sequence, new_tokens, settled)
            settled.started.append(sequence)
            if not sequence.first_token_ns and not sequence.request.emitted:
                settled.first.append(sequence)
    return counts


def _take_prompt_logprobs(sequence: Sequence, segment: Segment, result: StepResult, settled: Settled) -> None:
    """Entries not sent before: a preempted request computes its prompt twice."""
    entries = (result.prompt_logprobs or {}).get(sequence.seq, [])
    fresh = entries[max(sequence.num_prompt_logprobs - segment.start, 0) :]
    if fresh:
        sequence.num_prompt_logprobs += len(fresh)
        settled.prompt_logprobs.append((sequence, segment, fresh))


def _step_tokens(flight: Flight, result: StepResult, counts: list[int]) -> StepTokens | None:
    """The step's tokens that count."""
    logprobs = None if result.logprobs is None else _kept_logprobs(result.logprobs, counts)
    newcomers = [segment.seq for segment in flight.plan.segments if segment.sample]
    sampled = (*flight.plan.decode, *newcomers) if newcomers else flight.plan.decode
    tokens = list(chain.from_iterable(result.tokens))
    if len(tokens) == counts.count(1) == len(counts):
        return StepTokens(sampled, tokens, logprobs) if sampled else None
    seqs = tuple(seq for seq, count in zip(sampled, counts, strict=True) for _ in range(count))
    kept = (tokens[:count] for tokens, count in zip(result.tokens, counts, strict=True))
    return StepTokens(seqs, list(chain.from_iterable(kept)), logprobs) if seqs else None


def _kept_logprobs(
    logprobs: Aligned[tuple[TokenLogprobs, ...] | None], counts: list[int]
) -> list[TokenLogprobs | None]:
    """Aligned with the tokens that count."""
    kept: list[TokenLogprobs | None] = []
    for entries, count in zip(logprobs, counts, strict=True):
        kept += [None] * count if entries is None else entries[:count]
    return kept
