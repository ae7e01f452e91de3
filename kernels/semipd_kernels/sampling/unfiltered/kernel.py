"""Greedy and drawn tokens of rows whose logits stand as they are, and their way back into the slots.

    best    per tile   largest logit of the tile and its token
    weigh   per tile   of drawn rows: mass of the tile
    pick    per row    greedy token, or uniform, tile, token; newest token and position of the slot

Parameters come from the slots' columns, so that nothing has to be gathered before. What every program of a
row needs of all its tiles, the largest logit, each finds anew: a few hundred bytes of L2, less than a launch.
"""

import triton
import triton.language as tl

from semipd.sampling.parameters import Column
from semipd_kernels.sampling.arithmetic.kernel import (
    distance_of,
    mass_from,
    row_best,
    threshold_of,
    tile_beyond,
    token_beyond,
    uniform_bits,
)

TOKEN = tl.constexpr(int(Column.TOKEN))
POSITION = tl.constexpr(int(Column.POSITION))
TEMPERATURE = tl.constexpr(int(Column.TEMPERATURE_BITS))
MIN_P = tl.constexpr(int(Column.MIN_P_BITS))
SEED_LOW = tl.constexpr(int(Column.SEED_LOW_BITS))
SEED_HIGH = tl.constexpr(int(Column.SEED_HIGH_BITS))


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def best_kernel(
    logits_ptr,
    slots_ptr,
    tile_best_ptr,
    tile_token_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
):
    """NaN counts as +inf; of equals the lowest token."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    if tl.load(slots_ptr + row) > 0:
        first = (program % tiles) * TILE
        values = _values(logits_ptr, row, first + tl.arange(0, TILE), logits_stride, vocab_size)
        values = tl.where(values != values, float("inf"), values)
        best, token = tl.max(values, axis=0, return_indices=True)
        tl.store(tile_best_ptr + program, best)
        tl.store(tile_token_ptr + program, first + token)


@triton.jit(do_not_specialize=["num_slots"], do_not_specialize_on_alignment=["slots_ptr"])
def weigh_kernel(
    logits_ptr,
    slots_ptr,
    columns_ptr,
    tile_best_ptr,
    tile_mass_ptr,
    num_slots,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot > 0:
        temperature = _float_column(columns_ptr, TEMPERATURE, num_slots, slot)
        if temperature > 0.0:
            best, _, _ = row_best(tile_best_ptr, row, tiles, TILES)
            tokens = (program % tiles) * TILE + tl.arange(0, TILE)
            values = _values(logits_ptr, row, tokens, logits_stride, vocab_size)
            min_p = _float_column(columns_ptr, MIN_P, num_slots, slot)
            mass = mass_from(distance_of(values, best, temperature), min_p)
            tl.store(tile_mass_ptr + program, tl.sum(mass, axis=0))


@triton.jit(do_not_specialize=["num_slots"], do_not_specialize_on_alignment=["slots_ptr", "tokens_ptr"])
def pick_kernel(
    logits_ptr,
    slots_ptr,
    columns_ptr,
    tile_best_ptr,
    tile_token_ptr,
    tile_mass_ptr,
    tokens_ptr,
    num_slots,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    if slot > 0:
        best, tile, finite = row_best(tile_best_ptr, row, tiles, TILES)
        token = tl.load(tile_token_ptr + row * tiles + tile).to(tl.int64)
        position = tl.load(columns_ptr + POSITION * num_slots + slot) + 1
        temperature = _float_column(columns_ptr, TEMPERATURE, num_slots, slot)
        if finite & (temperature > 0.0):
            index = tl.arange(0, TILES)
            mass = tl.load(tile_mass_ptr + row * tiles + index, mask=index < tiles, other=0)
            bits = uniform_bits(_seed(columns_ptr, num_slots, slot), position.to(tl.int64))
            threshold = threshold_of(bits, tl.sum(mass, axis=0))
            tile, mass_before = tile_beyond(mass, index, threshold)
            tokens = tile * TILE + tl.arange(0, TILE)
            values = _values(logits_ptr, row, tokens, logits_stride, vocab_size)
            min_p = _float_column(columns_ptr, MIN_P, num_slots, slot)
            weights = mass_from(distance_of(values, best, temperature), min_p)
            token = tile * TILE + token_beyond(weights, mass_before, threshold)
        token = tl.where(finite, token, -1).to(tl.int32)
        tl.store(tokens_ptr + row, token)
        tl.store(columns_ptr + TOKEN * num_slots + slot, tl.maximum(token, 0))
        tl.store(columns_ptr + POSITION * num_slots + slot, position)


@triton.jit
def _values(logits_ptr, row, tokens, logits_stride, vocab_size):
    """The row's logits; -inf past the vocabulary."""
    logits = logits_ptr + row * logits_stride + tokens
    return tl.load(logits, mask=tokens < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _float_column(columns_ptr, column: tl.constexpr, num_slots, slot):
    return tl.load(columns_ptr + column * num_slots + slot).to(tl.float32, bitcast=True)


@triton.jit
def _seed(columns_ptr, num_slots, slot):
    low = tl.load(columns_ptr + SEED_LOW * num_slots + slot).to(tl.int64) & 0xFFFFFFFF
    return (tl.load(columns_ptr + SEED_HIGH * num_slots + slot).to(tl.int64) << 32) | low
