"""The kernels coarse, refine and select of sampling: see semipd_kernels.sampling.kernel."""

import triton
import triton.language as tl

from semipd_kernels.sampling.arithmetic.kernel import distance_of, mass_of
from semipd_kernels.sampling.kernel import (
    BEFORE_COUNT,
    BEFORE_MASS,
    COARSE_BIN,
    COARSE_BINS,
    DRAW,
    FINE_BIN,
    FINE_BINS,
    FINE_BITS,
    FINE_MASK,
    LIMIT,
    MODE,
    NEEDED,
    ROW_POINTERS,
    STATE_FIELDS,
    TIES,
    TOP_K,
    TOP_K_BITS,
    TOP_P,
    _row_values,
)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def coarse_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    best_ptr,
    state_ptr,
    coarse_count_ptr,
    coarse_mass_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
):
    """Adds the tile to the row's coarse histogram, if a filter is to be resolved. Only top-k needs counts."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    mode = tl.load(state_ptr + row * STATE_FIELDS + MODE)
    if mode >= TOP_K:
        tokens = (program % tiles) * TILE + tl.arange(0, TILE)
        values = _row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
        distance = distance_of(values, tl.load(best_ptr + row), tl.load(temperature_ptr + row))
        mass = mass_of(distance)
        bins = _coarse_bin(distance)
        if mode == TOP_K:
            tl.atomic_add(coarse_count_ptr + row * COARSE_BINS + bins, 1, mask=mass > 0, sem="relaxed")
        tl.atomic_add(coarse_mass_ptr + row * COARSE_BINS + bins, mass, mask=mass > 0, sem="relaxed")


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def refine_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    best_ptr,
    state_ptr,
    fine_count_ptr,
    fine_mass_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    LAST: tl.constexpr,
):
    """Adds the tile's tokens in the interval under refinement to the row's fine histogram.
    LAST: one bin per distance."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    state = state_ptr + row * STATE_FIELDS
    if tl.load(state + MODE) >= TOP_K:
        tokens = (program % tiles) * TILE + tl.arange(0, TILE)
        values = _row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
        distance = distance_of(values, tl.load(best_ptr + row), tl.load(temperature_ptr + row))
        mass = mass_of(distance)
        bits = distance.to(tl.int32, bitcast=True)
        interval = tl.load(state + COARSE_BIN).to(tl.int32)
        inside = (mass > 0) & (_coarse_bin(distance) == interval)
        inside = inside & (bits <= tl.load(state + TOP_K_BITS).to(tl.int32))
        offset = bits - _first_bits(interval)
        fine = offset >> FINE_BITS
        if LAST:
            inside = inside & (fine == tl.load(state + FINE_BIN).to(tl.int32))
            fine = offset & FINE_MASK
        if tl.max(inside.to(tl.int32), axis=0) > 0:
            bins = tl.where(inside, fine, 0)
            tl.atomic_add(fine_count_ptr + row * FINE_BINS + bins, 1, mask=inside, sem="relaxed")
            tl.atomic_add(fine_mass_ptr + row * FINE_BINS + bins, mass, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def select_coarse_kernel(top_k_ptr, top_p_ptr, state_ptr, coarse_count_ptr, coarse_mass_ptr):
    """Chooses the interval to refine. A top-k that all tokens with mass meet has no effect."""
    row = tl.program_id(0).to(tl.int64)
    state = state_ptr + row * STATE_FIELDS
    mode = tl.load(state + MODE)
    if mode >= TOP_K:
        bins = tl.arange(0, COARSE_BINS)
        mass = tl.load(coarse_mass_ptr + row * COARSE_BINS + bins)
        top_p = tl.load(top_p_ptr + row)
        if mode == TOP_K:
            count = tl.load(coarse_count_ptr + row * COARSE_BINS + bins)
            top_k = tl.load(top_k_ptr + row)
            if tl.sum(count, axis=0) > top_k:
                chosen = tl.sum((tl.cumsum(count, axis=0) < top_k).to(tl.int32), axis=0)
                tl.store(state + COARSE_BIN, chosen.to(tl.int64))
                tl.store(state + BEFORE_COUNT, tl.sum(tl.where(bins < chosen, count, 0), axis=0).to(tl.int64))
                tl.store(state + BEFORE_MASS, tl.sum(tl.where(bins < chosen, mass, 0), axis=0))
            else:
                _start_top_p(state, mass, top_p, bins)
        else:
            _start_top_p(state, mass, top_p, bins)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def select_fine_kernel(
    top_k_ptr, top_p_ptr, state_ptr, coarse_mass_ptr, fine_count_ptr, fine_mass_ptr, LAST: tl.constexpr
):
    """Chooses the bin that holds the k-th token or the end of the nucleus, and clears the fine histogram.
    LAST: its one distance is the filter's limit; goes on from top-k to top-p, or to the draw."""
    row = tl.program_id(0).to(tl.int64)
    state = state_ptr + row * STATE_FIELDS
    mode = tl.load(state + MODE)
    if mode >= TOP_K:
        bins = tl.arange(0, FINE_BINS)
        count = tl.load(fine_count_ptr + row * FINE_BINS + bins)
        mass = tl.load(fine_mass_ptr + row * FINE_BINS + bins)
        tl.debug_barrier()
        tl.store(fine_count_ptr + row * FINE_BINS + bins, tl.zeros([FINE_BINS], tl.int32))
        tl.store(fine_mass_ptr + row * FINE_BINS + bins, tl.zeros([FINE_BINS], tl.int64))
        before_count, before_mass = tl.load(state + BEFORE_COUNT), tl.load(state + BEFORE_MASS)
        needed = tl.load(state + NEEDED)
        if mode == TOP_K:
            short = before_count + tl.cumsum(count, axis=0) < tl.load(top_k_ptr + row)
        else:
            short = before_mass + tl.cumsum(mass, axis=0) < needed
        chosen = tl.sum(short.to(tl.int32), axis=0)
        before_mass += tl.sum(tl.where(bins < chosen, mass, 0), axis=0)
        if LAST:
            interval = tl.load(state + COARSE_BIN).to(tl.int32)
            fine = tl.load(state + FINE_BIN).to(tl.int32)
            limit = _first_bits(interval) + (fine << FINE_BITS) + chosen
            here = tl.sum(tl.where(bins == chosen, mass, 0), axis=0)
            if mode == TOP_K:
                tl.store(state + TOP_K_BITS, limit.to(tl.int64))
                tl.store(state + LIMIT, limit.to(tl.int64) + 1)
                coarse = tl.arange(0, COARSE_BINS)
                coarse_mass = tl.load(coarse_mass_ptr + row * COARSE_BINS + coarse)
                within = before_mass + here - tl.sum(tl.where(coarse < interval, coarse_mass, 0), axis=0)
                coarse_mass = tl.where(coarse == interval, within, coarse_mass)
                coarse_mass = tl.where(coarse <= interval, coarse_mass, 0)
                _start_top_p(state, coarse_mass, tl.load(top_p_ptr + row), coarse)
            else:
                each = here // tl.maximum(tl.sum(tl.where(bins == chosen, count, 0), axis=0), 1)
                tl.store(state + LIMIT, limit.to(tl.int64))
                tl.store(state + TIES, (needed - before_mass + each - 1) // tl.maximum(each, 1))
                tl.store(state + MODE, DRAW)
        else:
            before_count += tl.sum(tl.where(bins < chosen, count, 0), axis=0)
            tl.store(state + FINE_BIN, chosen.to(tl.int64))
            tl.store(state + BEFORE_COUNT, before_count)
            tl.store(state + BEFORE_MASS, before_mass)


@triton.jit
def _coarse_bin(distance):
    """Below 1/64 one interval per binary exponent, above one per 1/64, up to 1894 where masses end.

    Uniform intervals keep atomics apart: by exponent and leading bits most of a vocabulary, at distances of
    8 to 28, would share a dozen bins. An interval spans at most 2^23 floats.
    """
    exponent = distance.to(tl.int32, bitcast=True) >> 23
    return tl.where(exponent <= 120, exponent, 120 + (tl.minimum(distance, 28.0) * 64.0).to(tl.int32))


@triton.jit
def _first_bits(interval):
    """The smallest distance of a coarse interval, as bits."""
    uniform = ((interval - 120).to(tl.float32) * 0.015625).to(tl.int32, bitcast=True)
    return tl.where(interval <= 120, interval << 23, uniform)


@triton.jit
def _start_top_p(state, mass, top_p, bins):
    """From the masses of the intervals within top-k to the interval where the nucleus ends, or to the draw.

    The mass needed is rounded to fp32 as the plain sampler's: top-p 0.3 of 300 equal tokens are 90, not 91.
    """
    if top_p < 1.0:
        total = tl.sum(mass, axis=0)
        needed = tl.minimum(tl.ceil(top_p * total.to(tl.float32)).to(tl.int64), total)
        chosen = tl.sum((tl.cumsum(mass, axis=0) < needed).to(tl.int32), axis=0)
        tl.store(state + MODE, TOP_P)
        tl.store(state + NEEDED, needed)
        tl.store(state + COARSE_BIN, chosen.to(tl.int64))
        tl.store(state + BEFORE_COUNT, 0)
        tl.store(state + BEFORE_MASS, tl.sum(tl.where(bins < chosen, mass, 0), axis=0))
    else:
        tl.store(state + MODE, DRAW)
