"""Distances, masses and random numbers of sampling, for kernels: see semipd_kernels.sampling.kernel."""

import triton
import triton.language as tl


@triton.jit
def distance_of(values, best, temperature):
    """Correctly rounded, so that equal logits, and top-k, are those of the plain sampler."""
    tiny: tl.constexpr = 1.1754943508222875e-38
    return tl.math.div_rn(best - values, tl.maximum(temperature, tiny))


@triton.jit
def bits_of(distance):
    """Of distances, which are not negative: integers in the same order."""
    return distance.to(tl.int32, bitcast=True)


@triton.jit
def row_best(tile_best_ptr, row, tiles, TILES: tl.constexpr):
    """From the largest logits of a row's tiles: the largest, its tile, and whether it is finite. Never -0:
    minus a 0 it would give the distance -0, whose bits rank behind every other."""
    index = tl.arange(0, TILES)
    values = tl.load(tile_best_ptr + row * tiles + index, mask=index < tiles, other=-float("inf"))
    best, tile = tl.max(values, axis=0, return_indices=True)
    finite = (best > -float("inf")) & (best < float("inf"))
    return tl.where(best == 0.0, 0.0, best), tile, finite


@triton.jit
def mass_of(distance):
    return (tl.exp(-distance) * 1099511627776.0).to(tl.int64)


@triton.jit
def mass_from(distance, min_p):
    weight = tl.exp(-distance)
    return tl.where(weight >= min_p, (weight * 1099511627776.0).to(tl.int64), 0)


@triton.jit
def threshold_of(uniform_bits, total):
    """floor(uniform x total) for uniform = uniform_bits / 2^24, without overflow for total < 2^62."""
    low = uniform_bits * (total & 0xFFFFFF)
    return uniform_bits * (total >> 24) + (low >> 24)


@triton.jit
def uniform_bits(seed, position):
    """Top 24 bits of the first word of Philox-4x32-10 (Salmon et al., SC 2011): key = seed,
    counter = (low and high word of the position, 0, 0)."""
    words: tl.constexpr = 0xFFFFFFFF
    k0 = seed.to(tl.uint64, bitcast=True) & words
    k1 = seed.to(tl.uint64, bitcast=True) >> 32
    c0 = position.to(tl.uint64, bitcast=True) & words
    c1 = position.to(tl.uint64, bitcast=True) >> 32
    c2 = c0 * 0
    c3 = c0 * 0
    for _ in tl.static_range(10):
        # Both factors are below 2^32.
        product0 = c0 * 0xD2511F53
        product1 = c2 * 0xCD9E8D57
        c0 = (product1 >> 32) ^ c1 ^ k0
        c1 = product1 & words
        c2 = (product0 >> 32) ^ c3 ^ k1
        c3 = product0 & words
        k0 = (k0 + 0x9E3779B9) & words
        k1 = (k1 + 0xBB67AE85) & words
    return (c0 >> 8).to(tl.int64)


@triton.jit
def tile_beyond(mass, index, threshold):
    """From the masses of a row's tiles: the first whose cumulative mass exceeds `threshold`, and the mass
    before it."""
    tile = tl.sum((tl.cumsum(mass, axis=0) <= threshold).to(tl.int32), axis=0)
    return tile, tl.sum(tl.where(index < tile, mass, 0), axis=0)


@triton.jit
def token_beyond(weights, mass_before, threshold):
    """Of a tile: index of the first token whose cumulative mass exceeds `threshold`, int64."""
    passed = mass_before + tl.cumsum(weights, axis=0) <= threshold
    return tl.sum(passed.to(tl.int64), axis=0)
