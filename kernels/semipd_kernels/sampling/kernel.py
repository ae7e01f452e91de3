"""Sampling: kernels over (row, tile of the vocabulary) alternate with kernels over rows.

    adjust   per tile   bias, allowed tokens, min_tokens, penalties; largest logit of the tile
    best     per row    greedy token; whether to draw, and through which filters
    coarse   per tile   histogram of (count, mass) over 1895 intervals of the distance to the largest logit
    select   per row    which interval holds the k-th token, or the end of the nucleus
    refine   per tile   histogram of that interval alone, by the next 12, then the last 11 bits of a distance
    weigh    per tile   surviving mass
    pick     per row    uniform, tile, token

A token's distance is d = (largest logit - logit) / temperature, at least 0; its mass is the integer part
of exp(-d) 2^40. Sums of integers do not depend on the order of addition: histograms may use atomics, tiles
may be summed in any order, and a row's token still depends on that row alone.
"""

import triton
import triton.language as tl

from semipd.sampling.history import PROMPT_FLAG
from semipd_kernels.sampling import shape
from semipd_kernels.sampling.arithmetic.kernel import (
    distance_of,
    mass_from,
    threshold_of,
    tile_beyond,
    token_beyond,
    uniform_bits,
)

COARSE_BINS = tl.constexpr(shape.COARSE_BINS)
FINE_BINS = tl.constexpr(shape.FINE_BINS)
FINE_BITS = tl.constexpr(11)
FINE_MASK = tl.constexpr(2**11 - 1)

MODE = tl.constexpr(0)
"""Fields of a row's state, int64 [STATE_FIELDS]. MODE: DONE, DRAW, or the filter being resolved."""
BEFORE_COUNT = tl.constexpr(1)  # tokens and mass ranked before the interval under refinement
BEFORE_MASS = tl.constexpr(2)
COARSE_BIN = tl.constexpr(3)  # the interval under refinement
FINE_BIN = tl.constexpr(4)
NEEDED = tl.constexpr(5)  # top-p: mass the nucleus must reach
TOP_K_BITS = tl.constexpr(6)  # largest distance within top-k, as bits
LIMIT = tl.constexpr(7)  # distances below survive, as bits
TIES = tl.constexpr(8)  # how many at the limit survive, lowest ids first
STATE_FIELDS = tl.constexpr(shape.STATE_FIELDS)

DONE = tl.constexpr(0)
DRAW = tl.constexpr(1)
TOP_K = tl.constexpr(2)
TOP_P = tl.constexpr(3)

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
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    EDITS: tl.constexpr,
):
    """Rows with a slot: writes the adjusted logits. All rows: largest logit of the tile (NaN counts as +inf)
    and the lowest token that has it."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
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
def best_kernel(
    tile_best_ptr,
    tile_token_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    best_ptr,
    state_ptr,
    coarse_count_ptr,
    coarse_mass_ptr,
    fine_count_ptr,
    fine_mass_ptr,
    out_ptr,
    vocab_size,
    tiles,
    TILES: tl.constexpr,
):
    """Greedy token, or -1 for a row without a finite largest logit; prepares what follows."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, TILES)
    values = tl.load(tile_best_ptr + row * tiles + index, mask=index < tiles, other=-float("inf"))
    best, tile = tl.max(values, axis=0, return_indices=True)
    token = tl.load(tile_token_ptr + row * tiles + tile).to(tl.int64)
    finite = (best > -float("inf")) & (best < float("inf"))
    tl.store(out_ptr + row, tl.where(finite, token, -1))
    drawn = finite & (tl.load(temperature_ptr + row) > 0.0)
    mode = tl.where(drawn, DRAW, DONE)
    top_k = tl.load(top_k_ptr + row)
    mode = tl.where(drawn & (tl.load(top_p_ptr + row) < 1.0), TOP_P, mode)
    mode = tl.where(drawn & (top_k > 0) & (top_k < vocab_size), TOP_K, mode)
    state = state_ptr + row * STATE_FIELDS
    fields = tl.arange(0, STATE_FIELDS)
    initial = tl.where(fields == MODE, mode, 0)
    initial = tl.where((fields == TOP_K_BITS) | (fields == LIMIT), ALL_BITS, initial)
    tl.store(state + fields, initial.to(tl.int64))
    # Not -0: minus a 0 it would give the distance -0, whose bits rank behind every other.
    tl.store(best_ptr + row, tl.where(best == 0.0, 0.0, best))
    if mode >= TOP_K:
        coarse = row * COARSE_BINS + tl.arange(0, COARSE_BINS)
        tl.store(coarse_count_ptr + coarse, tl.zeros([COARSE_BINS], tl.int32))
        tl.store(coarse_mass_ptr + coarse, tl.zeros([COARSE_BINS], tl.int64))
        fine = row * FINE_BINS + tl.arange(0, FINE_BINS)
        tl.store(fine_count_ptr + fine, tl.zeros([FINE_BINS], tl.int32))
        tl.store(fine_mass_ptr + fine, tl.zeros([FINE_BINS], tl.int64))


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def weigh_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    min_p_ptr,
    best_ptr,
    state_ptr,
    tile_mass_ptr,
    tile_ties_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
):
    """Mass of the tile's tokens below the limit, and number of its tokens at the limit."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    if tl.load(state_ptr + row * STATE_FIELDS + MODE) == DRAW:
        tokens = (program % tiles) * TILE + tl.arange(0, TILE)
        values = _row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
        distance = distance_of(values, tl.load(best_ptr + row), tl.load(temperature_ptr + row))
        bits = distance.to(tl.int32, bitcast=True)
        limit = tl.load(state_ptr + row * STATE_FIELDS + LIMIT).to(tl.int32)
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
    best_ptr,
    state_ptr,
    tile_mass_ptr,
    tile_ties_ptr,
    out_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """First token, in order of ids, whose cumulative mass exceeds uniform x total mass."""
    row = tl.program_id(0).to(tl.int64)
    state = state_ptr + row * STATE_FIELDS
    if tl.load(state + MODE) == DRAW:
        limit = tl.load(state + LIMIT).to(tl.int32)
        ties = tl.load(state + TIES)
        min_p = tl.load(min_p_ptr + row)
        tied_distance = tl.where(ties > 0, limit, 0).to(tl.float32, bitcast=True)
        tied_mass = mass_from(tied_distance, min_p)

        index = tl.arange(0, TILES)
        mass = tl.load(tile_mass_ptr + row * tiles + index, mask=index < tiles, other=0)
        tied = tl.load(tile_ties_ptr + row * tiles + index, mask=index < tiles, other=0).to(tl.int64)
        ties_before = tl.cumsum(tied, axis=0) - tied
        mass += tl.maximum(tl.minimum(ties - ties_before, tied), 0) * tied_mass
        threshold = threshold_of(
            uniform_bits(tl.load(seeds_ptr + row), tl.load(positions_ptr + row)), tl.sum(mass, axis=0)
        )
        tile, mass_before = tile_beyond(mass, index, threshold)
        ties_left = ties - tl.sum(tl.where(index < tile, tied, 0), axis=0)

        offsets = tl.arange(0, TILE)
        tokens = tile * TILE + offsets
        values = _row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
        distance = distance_of(values, tl.load(best_ptr + row), tl.load(temperature_ptr + row))
        bits = distance.to(tl.int32, bitcast=True)
        at_limit = (bits == limit).to(tl.int32)
        survives = (bits < limit) | ((at_limit != 0) & (tl.cumsum(at_limit, axis=0) <= ties_left))
        weights = tl.where(survives, mass_from(distance, min_p), 0)
        tl.store(out_ptr + row, tile * TILE + token_beyond(weights, mass_before, threshold))


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
def _row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size):
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
