"""Where top-k and top-p end: distances below which the tokens survive, found without atomics.

    narrow    per tile   count and mass of the tile's tokens below a few distances, the pivots; twice
    gather    per tile   the tile's tokens in the interval that holds the end, to the row's others
    finish    per row    the one distance at which the row is cut

The pivots of the first round follow from the largest logits of the tiles, those of the second divide the
interval that the first round leaves. A kernel's programs find it from the sums of the row's tiles, each anew.

A row is cut by top-k first, and by top-p with the mass that top-k leaves. While it is not known where exactly
top-k ends, top-p ends somewhere between the ends for the least and for the largest mass that top-k may leave:
the interval reaches from there to where top-k may end at most.

Ties: tokens as far as the k-th all survive top-k. Of those at the end of top-p survive as many as it needs,
lowest ids first. A top-k that all tokens with mass meet has no effect.
"""

import triton
import triton.language as tl

from semipd_kernels.sampling import shape
from semipd_kernels.sampling.arithmetic.kernel import bits_of, distance_of, mass_of, row_best
from semipd_kernels.sampling.kernel import ALL_BITS, ROW_POINTERS, row_values

PIVOTS = tl.constexpr(shape.PIVOTS)
MASS_BITS = tl.constexpr(52)
ONE_TOKEN = tl.constexpr(2**52)
"""More than the mass of 2048 tokens."""
END = tl.constexpr(28.0)
"""A distance beyond all mass."""
END_BITS = tl.constexpr(0x41E00000)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def narrow_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    tile_best_ptr,
    count_1_ptr,
    mass_1_ptr,
    count_2_ptr,
    mass_2_ptr,
    interval_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Writes the sums of round 1 or 2: how many of the tile's tokens lie below each pivot, and their mass;
    [rows, tiles, PIVOTS] each. Round 2 begins with what follows from those of round 1: the interval as bits,
    int64 [rows, 4], with top-k, which is 0 if it cuts nothing, and the mass of all tokens."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    temperature, top_k, top_p = _parameters(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size)
    best, _tile, finite = row_best(tile_best_ptr, row, tiles, TILES)
    if finite & ((top_k > 0) | (top_p < 1.0)):
        pivots = _first_pivots(tile_best_ptr, row, best, temperature, tiles, TILES)
        count_ptr, mass_ptr = count_1_ptr, mass_1_ptr
        if ROUND == 2:
            counts, masses = _row_sums(count_1_ptr, mass_1_ptr, row, tiles, TILES)
            top_k = tl.where(_at(counts, PIVOTS - 1) > top_k, top_k, 0)
            total = _at(masses, PIVOTS - 1)
            first, last = _interval(counts, masses, top_k, top_p, total)
            low, high = _at(pivots, first), _at(pivots, last)
            if program % tiles == 0:
                _store_interval(interval_ptr + 4 * row, low, high, top_k, total)
            pivots = _inner_pivots(low, high)
            count_ptr, mass_ptr = count_2_ptr, mass_2_ptr
        first = (program % tiles) * TILE
        counts, masses = tl.zeros([PIVOTS], tl.int32), tl.zeros([PIVOTS], tl.int64)
        nearest = bits_of(distance_of(tl.load(tile_best_ptr + program), best, temperature))
        if nearest < tl.max(pivots, axis=0):
            for start in range(0, TILE, BLOCK):
                tokens = first + start + tl.arange(0, BLOCK)
                values = row_values(
                    logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size
                )
                bits, mass = _weighed(distance_of(values, best, temperature))
                count, mass = _below(bits, mass, pivots)
                counts += count
                masses += mass
        sums = program.to(tl.int64) * PIVOTS + tl.arange(0, PIVOTS)
        tl.store(count_ptr + sums, counts)
        tl.store(mass_ptr + sums, masses)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def gather_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    tile_best_ptr,
    count_2_ptr,
    mass_2_ptr,
    interval_ptr,
    candidates_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Writes the distances, as bits, of the tile's tokens in the row's interval, if there is room for all."""
    program = tl.program_id(0)
    row, tile = (program // tiles).to(tl.int64), program % tiles
    temperature, top_k, top_p = _parameters(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size)
    best, _tile, finite = row_best(tile_best_ptr, row, tiles, TILES)
    if finite & ((top_k > 0) | (top_p < 1.0)):
        low, high, top_k, total = _load_interval(interval_ptr + 4 * row)
        pivots = _inner_pivots(low, high)
        counts, masses = _row_sums(count_2_ptr, mass_2_ptr, row, tiles, TILES)
        first, last = _interval(counts, masses, top_k, top_p, total)
        low, high = _at(pivots, first), _at(pivots, last)
        num_candidates = _at(counts, last) - _at(counts, first)
        nearest = bits_of(distance_of(tl.load(tile_best_ptr + program), best, temperature))
        is_wide = (high - low > 1) & (num_candidates <= CANDIDATES)
        if is_wide & (nearest < high):
            index = tl.arange(0, TILES)
            sums = count_2_ptr + (row * tiles + index) * PIVOTS
            up_to_high = tl.load(sums + last, mask=index < tile, other=0)
            below_low = tl.load(sums + first, mask=index < tile, other=0)
            before = tl.sum(up_to_high - below_low, axis=0)
            tokens = tile * TILE + tl.arange(0, TILE)
            values = row_values(logits_ptr, adjusted_ptr, slots_ptr, row, tokens, logits_stride, vocab_size)
            bits, _mass = _weighed(distance_of(values, best, temperature))
            inside = (bits >= low) & (bits < high)
            place = before + tl.cumsum(inside.to(tl.int32), axis=0) - 1
            tl.store(candidates_ptr + row * CANDIDATES + place, bits, mask=inside)


@triton.jit(do_not_specialize_on_alignment=ROW_POINTERS)
def finish_kernel(
    logits_ptr,
    adjusted_ptr,
    slots_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    tile_best_ptr,
    count_2_ptr,
    mass_2_ptr,
    interval_ptr,
    candidates_ptr,
    limits_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes where the row is cut, int32 [2]: a distance as bits, below which tokens survive, and how many of
    those at it do, lowest ids first."""
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p = _parameters(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size)
    best, _tile, finite = row_best(tile_best_ptr, row, tiles, TILES)
    if finite & ((top_k > 0) | (top_p < 1.0)):
        low, high, top_k, total = _load_interval(interval_ptr + 4 * row)
        pivots = _inner_pivots(low, high)
        counts, masses = _row_sums(count_2_ptr, mass_2_ptr, row, tiles, TILES)
        first, last = _interval(counts, masses, top_k, top_p, total)
        low, high = _at(pivots, first), _at(pivots, last)
        count, mass = _at(counts, first), _at(masses, first)
        num_candidates = _at(counts, last) - count
        limit, ties = tl.load(limits_ptr + 2 * row), 0
        source = (logits_ptr, adjusted_ptr, slots_ptr, row, logits_stride, vocab_size, best, temperature)
        gathered = (candidates_ptr + row * CANDIDATES, num_candidates, num_candidates <= CANDIDATES)
        begin = (low, count, mass)
        if top_k > 0:
            kth, _before, total = _search(
                source, gathered, begin, high, _at(masses, last), top_k, True, BLOCK
            )
            high = kth + 1
            limit = high
        if top_p < 1.0:
            needed = _needed(top_p, total)
            limit, before, _to_limit = _search(source, gathered, begin, high, total, needed, False, BLOCK)
            each = tl.maximum(mass_of(limit.to(tl.float32, bitcast=True)), 1)
            ties = ((needed - before + each - 1) // each).to(tl.int32)
        tl.store(limits_ptr + 2 * row, limit)
        tl.store(limits_ptr + 2 * row + 1, ties)


@triton.jit
def _search(source, gathered, begin, high, mass_to_high, target, BY_COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest distance, as bits, with at least `target` tokens (or mass) up to it; the mass before it,
    and that up to it.

    begin: where the interval starts, count and mass before it. high: where it ends, before it `target` is
    reached. In each turn the pivots divide what is left of it: of 2^30 floats a single one is left after 10.
    """
    start, start_count, start_mass = begin
    low, mass_before = start, start_mass
    index = tl.arange(0, PIVOTS)
    while high - low > 1:
        step = (high - low + PIVOTS - 1) // PIVOTS
        pivots = tl.minimum(low + step * (index + 1), high)
        counts, masses = _sums(source, gathered, start, pivots, BLOCK)
        counts += start_count
        masses += start_mass
        reached = _number_below(counts, target) if BY_COUNT else _number_below(masses, target)
        mass_before = tl.where(reached > 0, _at(masses, reached - 1), mass_before)
        low = tl.where(reached > 0, _at(pivots, reached - 1), low)
        mass_to_high = _at(masses, reached)
        high = _at(pivots, reached)
    return low, mass_before, mass_to_high


@triton.jit
def _sums(source, gathered, start, pivots, BLOCK: tl.constexpr):
    """Count and mass of the row's tokens from `start` to below each pivot: of those that were gathered, or of
    all logits."""
    logits_ptr, adjusted_ptr, slots_ptr, row, logits_stride, vocab_size, best, temperature = source
    candidates_ptr, num_candidates, is_gathered = gathered
    counts, masses = tl.zeros([PIVOTS], tl.int32), tl.zeros([PIVOTS], tl.int64)
    size = tl.where(is_gathered, num_candidates, vocab_size)
    for block in range(0, size, BLOCK):
        index = block + tl.arange(0, BLOCK)
        if is_gathered:
            bits = tl.load(candidates_ptr + index, mask=index < size, other=END_BITS)
            distance = bits.to(tl.float32, bitcast=True)
        else:
            values = row_values(logits_ptr, adjusted_ptr, slots_ptr, row, index, logits_stride, vocab_size)
            distance = distance_of(values, best, temperature)
        bits, mass = _weighed(distance)
        count, mass = _below(tl.where(bits >= start, bits, ALL_BITS), mass, pivots)
        counts += count
        masses += mass
    return counts, masses


@triton.jit
def _parameters(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size):
    """Temperature, top-k (0: off), top-p (1: off) of a row; both are off in a greedy one."""
    temperature, top_k = tl.load(temperature_ptr + row), tl.load(top_k_ptr + row)
    drawn = temperature > 0.0
    top_k = tl.where(drawn & (top_k < vocab_size), top_k, 0)
    return temperature, top_k, tl.where(drawn, tl.load(top_p_ptr + row), 1.0)


@triton.jit
def _first_pivots(tile_best_ptr, row, best, temperature, tiles, TILES: tl.constexpr):
    """As bits. The first one parts the most likely token, with its equals, from the others, the last one all
    with mass from those without. Those between lie evenly up to 8 times the mean distance of the largest
    logits of the tiles: if all logits are alike, about there ends the bulk of them. The mean is one of
    integers, the same in whatever order a kernel adds."""
    tile = tl.arange(0, TILES)
    values = tl.load(tile_best_ptr + row * tiles + tile, mask=tile < tiles, other=-float("inf"))
    distance = tl.minimum(distance_of(values, best, temperature), END)
    mean = tl.sum(tl.where(tile < tiles, (distance * 65536.0).to(tl.int32), 0), axis=0) // tiles
    reach = tl.where(mean > 0, tl.minimum(mean.to(tl.float32) * (8.0 / 65536.0), END), END)
    index = tl.arange(0, PIVOTS)
    pivots = bits_of(index.to(tl.float32) * (reach * (1.0 / (PIVOTS - 1))))
    pivots = tl.where(index == PIVOTS - 1, END_BITS, pivots)
    return tl.where(index == 0, 1, pivots)


@triton.jit
def _inner_pivots(low, high):
    """As bits, like both arguments: evenly from `low` to `high`."""
    start, end = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    index = tl.arange(0, PIVOTS)
    pivots = bits_of(start + index.to(tl.float32) * ((end - start) * (1.0 / (PIVOTS - 1))))
    return tl.where(index == PIVOTS - 1, high, tl.minimum(pivots, high))


@triton.jit
def _store_interval(interval_ptr, low, high, top_k, total):
    tl.store(interval_ptr, low.to(tl.int64))
    tl.store(interval_ptr + 1, high.to(tl.int64))
    tl.store(interval_ptr + 2, top_k.to(tl.int64))
    tl.store(interval_ptr + 3, total)


@triton.jit
def _load_interval(interval_ptr):
    low, high, top_k = tl.load(interval_ptr), tl.load(interval_ptr + 1), tl.load(interval_ptr + 2)
    return low.to(tl.int32), high.to(tl.int32), top_k.to(tl.int32), tl.load(interval_ptr + 3)


@triton.jit
def _interval(counts, masses, top_k, top_p, total):
    """From the sums below the pivots: indices of the pivots, -1 for the distance 0, between which the row is
    cut, by top-k and by top-p if it has both. `total`: the mass of all tokens."""
    last = tl.where(top_k > 0, _number_below(counts, top_k), PIVOTS - 1)
    least = tl.where(top_k > 0, _at(masses, last - 1), total)
    end = _number_below(masses, _needed(top_p, least))
    last = tl.where((top_p < 1.0) & (top_k == 0), end, last)
    return tl.where(top_p < 1.0, end, last) - 1, last


@triton.jit
def _needed(top_p, total):
    """Mass that the survivors of top-p must reach. Rounded to fp32 as the plain sampler's: top-p 0.3 of 300
    equal tokens are 90, not 91."""
    needed = tl.minimum(tl.ceil(top_p * total.to(tl.float32)).to(tl.int64), total)
    return tl.maximum(needed, 1)


@triton.jit
def _row_sums(count_ptr, mass_ptr, row, tiles, TILES: tl.constexpr):
    """Of all tiles, by pivot."""
    tile, index = tl.arange(0, TILES)[:, None], tl.arange(0, PIVOTS)[None, :]
    places, mask = (row * tiles + tile) * PIVOTS + index, (tile < tiles) & (index < PIVOTS)
    counts = tl.load(count_ptr + places, mask=mask, other=0)
    return tl.sum(counts, axis=0), tl.sum(tl.load(mass_ptr + places, mask=mask, other=0), axis=0)


@triton.jit
def _weighed(distance):
    """Bits and mass. Tokens without mass are farther than any pivot."""
    mass = mass_of(distance)
    return tl.where(mass > 0, bits_of(distance), ALL_BITS), mass


@triton.jit
def _below(bits, mass, pivots):
    """Count and mass of at most 2048 tokens below each pivot: both fit into one 64-bit sum."""
    inside = bits[:, None] < pivots[None, :]
    sums = tl.sum(tl.where(inside, (mass + ONE_TOKEN)[:, None], 0), axis=0)
    return ((sums >> MASS_BITS) & 0xFFF).to(tl.int32), sums & (ONE_TOKEN - 1)


@triton.jit
def _number_below(values, target):
    return tl.sum((values < target).to(tl.int32), axis=0)


@triton.jit
def _at(values, place):
    """values[place]; 0 for -1."""
    return tl.sum(tl.where(tl.arange(0, PIVOTS) == place, values, 0), axis=0)
