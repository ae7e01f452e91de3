"""The rows of a step: those of its decodes, then its chunks end to end, and what is wanted of which."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from semipd.core.plan import TokenLogprobs
from semipd.core.request import SeqId
from semipd.steps.residents import Chunk, Resident

Integers = np.ndarray[Any, np.dtype[np.int64]]


class ChunkVectors(NamedTuple):
    """Of the rows of chunks, int64 [rows]; `slots`: where each row's KV is written."""

    token_ids: Integers
    positions: Integers
    slots: Integers


def chunk_vectors(chunks: Sequence[Chunk]) -> ChunkVectors:
    """At least one chunk."""
    tokens = [t for c in chunks for t in c.resident.token_ids[c.segment.start : c.end]]
    positions = [np.arange(c.segment.start, c.end) for c in chunks]
    slots = [_slots(c.resident, at) for c, at in zip(chunks, positions, strict=True)]
    return ChunkVectors(np.array(tokens, dtype=np.int64), np.concatenate(positions), np.concatenate(slots))


def _slots(resident: Resident, positions: Integers) -> Integers:
    table, size = np.array(resident.block_table, dtype=np.int64), resident.block_size
    slots: Integers = table[positions // size] * size + positions % size
    return slots


def sampled_residents(decoding: Sequence[Resident], chunks: Sequence[Chunk]) -> list[Resident]:
    """Who gets a token, in the order of StepResult.tokens."""
    return [*decoding, *(chunk.resident for chunk in chunks if chunk.segment.sample)]


def wanted_rows(num_decode: int, chunks: Sequence[Chunk]) -> list[int]:
    """Whose logits are wanted: decode rows, ends of chunks that sample, predictors of prompt tokens."""
    starts = list(accumulate((chunk.segment.length for chunk in chunks), initial=num_decode))
    rows = list(range(num_decode))
    rows += [end - 1 for end, chunk in zip(starts[1:], chunks, strict=True) if chunk.segment.sample]
    for start, chunk in zip(starts, chunks, strict=False):
        # The logits of token i - 1 predict token i.
        rows += [start + i - 1 - chunk.segment.start for i in chunk.predicted_prompt()]
    return rows


def prompt_targets(chunks: Sequence[Chunk]) -> list[int]:
    """The prompt tokens that are predicted, in the order of their rows."""
    return [chunk.resident.token_ids[i] for chunk in chunks for i in chunk.predicted_prompt()]


def num_prompt_top(chunks: Sequence[Chunk]) -> list[int]:
    """How many alternatives each of them wants."""
    return [chunk.segment.prompt_logprobs or 0 for chunk in chunks for _ in chunk.predicted_prompt()]


def by_sequence(
    chunks: Sequence[Chunk], entries: Iterator[TokenLogprobs]
) -> dict[SeqId, list[TokenLogprobs]] | None:
    """StepResult.prompt_logprobs from the entries of all predicted prompt tokens."""
    owing = [chunk for chunk in chunks if chunk.segment.prompt_logprobs is not None]
    return {c.segment.seq: [next(entries) for _ in c.predicted_prompt()] for c in owing} or None
