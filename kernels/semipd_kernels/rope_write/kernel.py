"""One program per token and group of heads; query, key and value heads may share a group."""

import triton
import triton.language as tl

from semipd_kernels.dependent.kernel import wait_for_earlier_kernels


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def rope_write_kernel(
    qkv_ptr,
    positions_ptr,
    frequencies_ptr,
    slots_ptr,
    pool_ptr,
    qk_norm_ptr,
    qkv_stride,
    num_q,
    num_kv,
    num_blocks,
    num_groups,
    rope_scale,
    eps,
    QK_NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_earlier_kernels(DEPENDENT)
    program = tl.program_id(0)
    row = (program // num_groups).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    num_slots = num_blocks.to(tl.int64) * BLOCK_SIZE
    if (slot >= 0) & (slot < num_slots):
        HALF: tl.constexpr = HEAD_DIM // 2
        heads = (program % num_groups) * HEADS + tl.arange(0, HEADS)[:, None]
        pairs = tl.arange(0, HALF)[None, :]
        mask = (heads < num_q + 2 * num_kv) & (pairs < HALF)
        is_qk = heads < num_q + num_kv
        sources = qkv_ptr + row * qkv_stride + heads * HEAD_DIM + pairs
        first = tl.load(sources, mask=mask, other=0.0)
        second = tl.load(sources + HALF, mask=mask, other=0.0)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        if QK_NORM:
            squares = tl.sum(wide_first * wide_first + wide_second * wide_second, axis=1) / HEAD_DIM
            scale = tl.math.rsqrt(squares + eps)[:, None]
            weights = qk_norm_ptr + heads * HEAD_DIM + pairs
            wide_first *= scale * tl.load(weights, mask=is_qk, other=0.0)
            wide_second *= scale * tl.load(weights + HALF, mask=is_qk, other=0.0)
        angles = tl.load(positions_ptr + row).to(tl.float32) * tl.load(frequencies_ptr + tl.arange(0, HALF))
        cos, sin = cos_sin(angles)
        cos, sin = (cos * rope_scale)[None, :], (sin * rope_scale)[None, :]
        dtype = first.dtype
        first = tl.where(is_qk, (wide_first * cos - wide_second * sin).to(dtype), first)
        second = tl.where(is_qk, (wide_second * cos + wide_first * sin).to(dtype), second)
        is_q = heads < num_q
        tl.store(sources, first, mask=is_q & (pairs < HALF))
        tl.store(sources + HALF, second, mask=is_q & (pairs < HALF))
        # Keys then values: two planes of the pool.
        plane = tl.where(is_qk, 0, 1).to(tl.int64)
        kv_head = tl.where(is_qk, heads - num_q, heads - num_q - num_kv)
        tile = (plane * num_blocks + slot // BLOCK_SIZE) * num_kv + kv_head
        targets = pool_ptr + (tile * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + pairs
        tl.store(targets, first, mask=mask & (heads >= num_q))
        tl.store(targets + HALF, second, mask=mask & (heads >= num_q))


@triton.jit
def cos_sin(angles):
    """fp32 cosine and sine, each within 2.5e-7 of the exact value for 0 <= angle < 2^22.

    `tl.cos` is as accurate (Triton 3.6 to 3.9 link libdevice, not `cos.approx`), but for angles over 105615
    it branches into an exact reduction that keeps its words in a local-memory array. Here the reduction to
    [-pi/4, pi/4] is one double precision product: its error, 2^-53 of the angle, is below 1e-9.
    """
    wide = angles.to(tl.float64)
    quarters = tl.floor(wide * 0.63661977236758134308 + 0.5)
    r = (wide - quarters * 1.57079632679489661923).to(tl.float32)
    # Taylor series; first omitted terms: (pi/4)^11 / 11! = 1.8e-9 and (pi/4)^12 / 12! = 1.1e-10.
    z = r * r
    sin = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880))))
    cos = 1.0 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800)))))
    quadrant = quarters.to(tl.int64) & 3
    odd = (quadrant & 1) != 0
    cos_value = tl.where(odd, sin, cos)
    sin_value = tl.where(odd, cos, sin)
    cos_value = tl.where((quadrant == 1) | (quadrant == 2), -cos_value, cos_value)
    sin_value = tl.where(quadrant >= 2, -sin_value, sin_value)
    return cos_value, sin_value
