"""Launch shape: one program per token and group of heads."""

from collections.abc import Sequence

import triton
from torch import Tensor

from semipd_kernels.dependent import dependence
from semipd_kernels.launches import Launch
from semipd_kernels.rope_write.kernel import rope_write_kernel

TILE_ELEMENTS = 1024
"""Of one half of the heads: 8 heads at D 256, 16 at D 128, 32 at D 64. With 2 warps a thread has 16 elements
of each half (two 16-byte loads of bf16). Larger groups would share one cosine among more heads, but leave a
decode batch of few tokens on few SMs; at 32 + 2 x 8 heads of 128 a token is 3 programs."""
NUM_WARPS = 2


def heads_per_program(head_dim: int) -> int:
    return 2 * TILE_ELEMENTS // head_dim


def launches(
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    rope_scale: float,
    slot_mapping: Tensor,
    kv_pool: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    dependent: bool,
) -> Sequence[Launch]:
    num_rows, num_heads, head_dim = qkv.shape
    _, num_blocks, num_kv, block_size, _ = kv_pool.shape
    group = heads_per_program(head_dim)
    num_groups = triton.cdiv(num_heads, group)
    tensors = (
        qkv,
        positions,
        frequencies,
        slot_mapping,
        kv_pool,
        frequencies if qk_norm is None else qk_norm,
    )
    sizes = (qkv.stride(0), num_heads - 2 * num_kv, num_kv, num_blocks, num_groups)
    constants = {
        "QK_NORM": qk_norm is not None,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "HEADS": group,
        "num_warps": NUM_WARPS,
        "num_stages": 1,
        # No fused multiply-add: an angle is rounded before its reduction, and a row's bits must not depend on
        # how a compiler contracts. The kernel waits for memory, not for arithmetic.
        "enable_fp_fusion": False,
        **dependence(dependent),
    }
    args = (*tensors, *sizes, rope_scale, eps)
    return [Launch(rope_write_kernel, num_rows * num_groups, args, constants)]
