"""Per tile: log-sum-exp and the best candidates. Per row: their combination.

A candidate is one int64: the logit's bits, made to order like integers, above the complement of the token id.
So the largest is the most likely token, the lowest id among equals, and no two are the same.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))


@triton.jit
def tile_logprobs_kernel(
    logits_ptr,
    num_top_ptr,
    tile_max_ptr,
    tile_sum_ptr,
    candidates_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILE: tl.constexpr,
    MAX_TOP: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    num_top = tl.load(num_top_ptr + row)
    if num_top >= 0:
        tokens = (program % tiles) * TILE + tl.arange(0, TILE)
        mask = tokens < vocab_size
        values = tl.load(logits_ptr + row * logits_stride + tokens, mask=mask, other=-float("inf"))
        values = values.to(tl.float32)
        largest = tl.max(values, axis=0)
        # A tile of -inf alone has no sum; NaN must show.
        shift = tl.where(largest == -float("inf"), 0.0, largest)
        tl.store(tile_max_ptr + program, largest)
        tl.store(tile_sum_ptr + program, tl.sum(tl.exp(values - shift), axis=0))
        if num_top > 0:
            keys = tl.where(mask, _keys(values, tokens), LOWEST)
            for rank in range(MAX_TOP):
                best = tl.max(keys, axis=0)
                tl.store(candidates_ptr + program.to(tl.int64) * MAX_TOP + rank, best)
                keys = tl.where(keys == best, LOWEST, keys)


@triton.jit
def row_logprobs_kernel(
    logits_ptr,
    tokens_ptr,
    num_top_ptr,
    tile_max_ptr,
    tile_sum_ptr,
    candidates_ptr,
    own_ptr,
    top_ids_ptr,
    top_values_ptr,
    logits_stride,
    vocab_size,
    tiles,
    TILES: tl.constexpr,
    MAX_TOP: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """CANDIDATES: at least tiles * MAX_TOP."""
    row = tl.program_id(0).to(tl.int64)
    num_top = tl.load(num_top_ptr + row)
    own = float("nan")
    logsumexp = 0.0
    if num_top >= 0:
        index = tl.arange(0, TILES)
        maxima = tl.load(tile_max_ptr + row * tiles + index, mask=index < tiles, other=-float("inf"))
        sums = tl.load(tile_sum_ptr + row * tiles + index, mask=index < tiles, other=0.0)
        largest = tl.max(maxima, axis=0)
        scaled = tl.where(maxima == -float("inf"), sums * 0.0, sums * tl.exp(maxima - largest))
        logsumexp = largest + tl.log(tl.sum(scaled, axis=0))
        token = tl.load(tokens_ptr + row)
        if (token >= 0) & (token < vocab_size):
            own = tl.load(logits_ptr + row * logits_stride + token).to(tl.float32) - logsumexp
    tl.store(own_ptr + row, own)
    if num_top > 0:
        index = tl.arange(0, CANDIDATES)
        candidates = candidates_ptr + row * tiles * MAX_TOP
        keys = tl.load(candidates + index, mask=index < tiles * MAX_TOP, other=LOWEST)
        for rank in range(MAX_TOP):
            best = tl.max(keys, axis=0)
            keys = tl.where(keys == best, LOWEST, keys)
            tl.store(top_ids_ptr + row * MAX_TOP + rank, (0xFFFFFFFF - (best & 0xFFFFFFFF)).to(tl.int32))
            tl.store(top_values_ptr + row * MAX_TOP + rank, _value(best) - logsumexp)
    else:
        for rank in range(MAX_TOP):
            tl.store(top_ids_ptr + row * MAX_TOP + rank, -1)
            tl.store(top_values_ptr + row * MAX_TOP + rank, float("nan"))


@triton.jit
def _keys(values, tokens):
    """-0 counts as 0. Applied twice, the exchange of the lower bits of negative numbers gives them back."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - tokens.to(tl.int64))


@triton.jit
def _value(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
