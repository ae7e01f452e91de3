"""Sampling parameters as numbers: a few int32 per sequence, which a lane may keep on its device, and what
samplers read out of them."""

from collections.abc import Sequence
from ctypes import c_float, c_int32
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from semipd.core.sampling import MAX_COUNT, SMALLEST, SamplingParams

_WORD = 0xFFFFFFFF
_Floats = c_float * 6
"""Beyond the range of float32 they are infinity."""


class Column(IntEnum):
    """Numbers of a sequence, int32; `*_BITS` hold the bits of a float32 or of an unsigned word."""

    TOKEN = 0
    POSITION = 1
    TOP_K = 2
    TEMPERATURE_BITS = 3
    TOP_P_BITS = 4
    MIN_P_BITS = 5
    REPETITION_BITS = 6
    FREQUENCY_BITS = 7
    PRESENCE_BITS = 8
    SEED_LOW_BITS = 9
    SEED_HIGH_BITS = 10


PADDING_SLOT = 0
"""Of a lane's columns: nobody's. Its token 0 at position 0 stays."""


def column_values(params: SamplingParams, token_ids: Sequence[int]) -> tuple[int, ...]:
    """By Column, of a sequence with the history `token_ids`: its newest token stands at its position."""
    floats = _Floats(
        0.0 if params.greedy else max(params.temperature, SMALLEST),
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    )
    seed_words = (_signed(params.seed & _WORD), _signed(params.seed >> 32))
    top_k = min(params.top_k, MAX_COUNT)
    bits = memoryview(floats).cast("B").cast("i")
    return (token_ids[-1], len(token_ids) - 1, top_k, *bits, *seed_words)


def advance_columns(columns: Tensor, slots: Tensor, tokens: Tensor) -> None:
    """`tokens` int32 [R] are the newest of the sequences in `slots` int64 [R], each named once; the padding
    slot, which keeps its token and its position, any number of times."""
    is_own = slots != PADDING_SLOT
    columns[Column.TOKEN].scatter_(0, slots, tokens.where(is_own, 0))
    columns[Column.POSITION].index_add_(0, slots, is_own.to(torch.int32))


def float_bits(value: float) -> int:
    """Of `value` as float32; beyond its range that is infinity."""
    return c_int32.from_buffer(c_float(value)).value


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


@dataclass(frozen=True, slots=True)
class RowParams:
    """One entry per row of logits, all on one device.

    Attributes:
        temperature: float32 [R]; 0: greedy.
        top_k: int32 [R]; 0: off.
        top_p, min_p: float32 [R]; 1 and 0: off.
        repetition, frequency, presence: float32 [R] penalties; 1, 0, 0: off.
        seeds: int64 [R], the bits of the unsigned 64-bit seed.
        positions: int64 [R], of the tokens to be sampled: so many tokens are in the history.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    seeds: Tensor
    positions: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> "RowParams":
        """`columns`: int32 [columns, R], each contiguous. Seeds and positions are copies, the rest views."""

        by_column = columns.unbind()

        def floats(column: Column) -> Tensor:
            return by_column[column].view(torch.float32)

        low, high = by_column[Column.SEED_LOW_BITS].long(), by_column[Column.SEED_HIGH_BITS].long()
        return cls(
            temperature=floats(Column.TEMPERATURE_BITS),
            top_k=by_column[Column.TOP_K],
            top_p=floats(Column.TOP_P_BITS),
            min_p=floats(Column.MIN_P_BITS),
            repetition=floats(Column.REPETITION_BITS),
            frequency=floats(Column.FREQUENCY_BITS),
            presence=floats(Column.PRESENCE_BITS),
            seeds=(high << 32) | (low & _WORD),
            positions=by_column[Column.POSITION].long() + 1,
        )

    def __len__(self) -> int:
        return len(self.temperature)
