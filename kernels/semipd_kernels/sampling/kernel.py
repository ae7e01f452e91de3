"""Sampling: kernels over (row, tile of the vocabulary), then one over rows.

    adjust   per tile   bias, allowed tokens, min_tokens, penalties; largest logit of the tile
    ...                 of filtered rows: where top-k and top-p end, see filters.kernel
    weigh    per tile   of drawn rows: surviving mass
    pick     per row    greedy token, or uniform, tile, token

A token's distance is d = (largest logit - logit) / temperature, at least 0; its mass is the integer part
of exp(-d) 2^40. Sums of integers do not depend on the order of addition: tiles may be summed in any order,
and a row's token still depends on that row alone. What every program of a row needs of all its tiles, the
largest logit, each finds anew: a few hundred bytes of L2, less than a launch.
"""

import triton
import triton.language as tl

from semipd.sampling.history import PROMPT_FLAG
from semipd_kernels.sampling.arithmetic.kernel import (
    bits_of,
    distance_of,
    mass_from,
    row_best,
    threshold_of,
    tile_beyond,
    token_beyond,
    uniform_bits,
)

ALL_BITS = tl.constexpr(0x7FFFFFFF)
OUTPUT_COUNT = tl.constexpr(PROMPT_FLAG - 1)
"""The bits of a count that say how often a token is in the output; the next one: it is in the prompt. A
negative count: the row may not choose the token."""

ROW_POINTERS = (
    "edit_bias_ptr",
    "edit_starts_ptr",
    "edit_tokens_ptr",
    "edit_until_ptr",
    "frequency_ptr",
    "min_p_ptr",
    "out_ptr",
    "positions_ptr",
    "presence_ptr",
    "repetition_ptr",
    "seeds_ptr",
    "slots_ptr",
    "temperature_ptr",
    "top_k_ptr",
    "top_p_ptr",
)
"""Vectors with an entry a row may begin anywhere, often as rows of one matrix: a kernel for each of their
alignments would be compiled while serving."""


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def adjust_kernel(
    logits_ptr,
    adjusted_ptr,
    counts_ptr,
    slots_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    positions_ptr,
    edit_starts_ptr,
    edit_tokens_ptr,
    edit_bias_ptr,
    edit_until_ptr,
    tile_best_ptr,
    tile_token_ptr,
    limits_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    EDITS: tl.constexpr,
):
    """Rows with a slot: writes the adjusted logits. All rows: largest logit of the tile (NaN counts as +inf)
    and the lowest token that has it; nothing is cut yet."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    if program % tiles == 0:
        tl.store(limits_ptr + 2 * row, ALL_BITS)
        tl.store(limits_ptr + 2 * row + 1, 0)
    first = (program % tiles) * TILE
    tokens = first + tl.arange(0, TILE)
    mask = tokens < vocab_size
    logits_row = logits_ptr + row * logits_stride
    values = tl.load(logits_row + tokens, mask=mask, other=-float("inf")).to(tl.float32)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        counts_row = counts_ptr + slot * vocab_size
        adjusted_row = adjusted_ptr + slot * vocab_size
        repetition = tl.load(repetition_ptr + row)
        frequency = tl.load(frequency_ptr + row)
        presence = tl.load(presence_ptr + row)
        counts = tl.load(counts_row + tokens, mask=mask, other=0)
        values = _adjusted(values, counts, repetition, frequency, presence)
        tl.store(adjusted_row + tokens, values, mask=mask)
        start, end = tl.load(edit_starts_ptr + row), tl.load(edit_starts_ptr + row + 1)
        if end > start:
            position = tl.load(positions_ptr + row)
            tl.debug_barrier()
            for edit in range(start, end, EDITS):
                edits = edit + tl.arange(0, EDITS)
                token = tl.load(edit_tokens_ptr + edits, mask=edits < end, other=-1)
                here = (token >= first) & (token < first + TILE) & (token < vocab_size)
                value = tl.load(logits_row + token, mask=here, other=0.0).to(tl.float32)
                value += tl.load(edit_bias_ptr + edits, mask=here, other=0.0)
                until = tl.load(edit_until_ptr + edits, mask=here, other=0)
                value = tl.where(position < until, value - float("inf"), value)
                count = tl.load(counts_row + token, mask=here, other=0)
                value = _adjusted(value, count, repetition, frequency, presence)
                tl.store(adjusted_row + token, value, mask=here)
            tl.debug_barrier()
            values = tl.load(adjusted_row + tokens, mask=mask, other=-float("inf"))
    values = tl.where(values != values, float("inf"), values)
    best, token = tl.max(values, axis=0, return_indices=True)
    tl.store(tile_best_ptr + program, best)
    tl.store(tile_token_ptr + program, first + token)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def weigh_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    min_p_ptr,
    tile_best_ptr,
    limits_ptr,
    tile_mass_ptr,
    tile_ties_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Mass of the tile's tokens below the limit, and number of its tokens at the limit."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        best, _, finite = row_best(tile_best_ptr, row, tiles, TILES)
        limit = tl.load(limits_ptr + 2 * row)
        nearest = bits_of(distance_of(tl.load(tile_best_ptr + program), best, temperature))
        tl.store(tile_mass_ptr + program, tl.zeros([], tl.int64))
        tl.store(tile_ties_ptr + program, 0)
        if finite & (nearest <= limit):
            tokens = (program % tiles) * TILE + tl.arange(0, TILE)
            values = row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
            distance = distance_of(values, best, temperature)
            bits = bits_of(distance)
            mass = tl.where(bits < limit, mass_from(distance, tl.load(min_p_ptr + row)), 0)
            tl.store(tile_mass_ptr + program, tl.sum(mass, axis=0))
            tl.store(tile_ties_ptr + program, tl.sum((bits == limit).to(tl.int32), axis=0))


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def pick_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    tile_best_ptr,
    tile_token_ptr,
    limits_ptr,
    tile_mass_ptr,
    tile_ties_ptr,
    out_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Greedy token; or the first, in order of ids, whose cumulative mass exceeds uniform x total mass; or -1
    for a row without a finite largest logit."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    best, tile, finite = row_best(tile_best_ptr, row, tiles, TILES)
    token = tl.load(tile_token_ptr + row * tiles + tile)
    if finite & (temperature > 0.0):
        limit, ties = tl.load(limits_ptr + 2 * row), tl.load(limits_ptr + 2 * row + 1)
        min_p = tl.load(min_p_ptr + row)
        tied_distance = tl.where(ties > 0, limit, 0).to(tl.float32, bitcast=True)
        tied_mass = mass_from(tied_distance, min_p)

        index = tl.arange(0, TILES)
        mass = tl.load(tile_mass_ptr + row * tiles + index, mask=index < tiles, other=0)
        tied = tl.load(tile_ties_ptr + row * tiles + index, mask=index < tiles, other=0)
        ties_before = tl.cumsum(tied, axis=0) - tied
        mass += tl.maximum(tl.minimum(ties - ties_before, tied), 0) * tied_mass
        threshold = threshold_of(
            uniform_bits(tl.load(seeds_ptr + row), tl.load(positions_ptr + row)), tl.sum(mass, axis=0)
        )
        tile, mass_before = tile_beyond(mass, index, threshold)
        ties_left = ties - tl.sum(tl.where(index < tile, tied, 0), axis=0)

        tokens = tile * TILE + tl.arange(0, TILE)
        values = row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
        distance = distance_of(values, best, temperature)
        bits = bits_of(distance)
        at_limit = (bits == limit).to(tl.int32)
        survives = (bits < limit) | ((at_limit != 0) & (tl.cumsum(at_limit, axis=0) <= ties_left))
        weights = tl.where(survives, mass_from(distance, min_p), 0)
        token = tile * TILE + token_beyond(weights, mass_before, threshold).to(tl.int32)
    tl.store(out_ptr + row, tl.where(finite, token, -1).to(tl.int64))


@triton.jit
def _adjusted(values, counts, repetition, frequency, presence):
    """The mask of a token that is not allowed, then repetition over prompt and output, the other two over the
    output. NaN and +inf become NaN: a mask hides no invalid logit."""
    values = tl.where(counts < 0, values - float("inf"), values)
    factors = tl.where(values > 0.0, tl.math.div_rn(1.0, repetition), repetition)
    values *= tl.where((counts & ALL_BITS) != 0, factors, 1.0)
    output_counts = (counts & OUTPUT_COUNT).to(tl.float32)
    values -= output_counts * frequency
    return values - tl.minimum(output_counts, 1.0) * presence


@triton.jit
def row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size):
    """The row's logits, adjusted if it has a slot; -inf past the vocabulary."""
    slot = tl.load(slots_ptr + row).to(tl.int64)
    num_adjusted = tl.where(slot >= 0, vocab_size, 0)
    adjusted = tl.load(
        adjusted_ptr + slot * vocab_size + tokens, mask=tokens < num_adjusted, other=-float("inf")
    )
    raw = tl.load(
        logits_ptr + row * logits_stride + tokens,
        mask=(tokens >= num_adjusted) & (tokens < vocab_size),
        other=-float("inf"),
    )
    return tl.maximum(adjusted, raw.to(tl.float32))
