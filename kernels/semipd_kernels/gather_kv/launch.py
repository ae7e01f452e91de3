"""Launch shape: a tile of 4 to 32 KiB per program."""

from collections.abc import Sequence

import triton
from torch import Tensor

from semipd_kernels.gather_kv.kernel import gather_kv_kernel
from semipd_kernels.launches import Launch

NUM_WARPS = 4
"""A tile of 16 x 128 in bf16 is two loads of 16 bytes a thread; one of 64 x 128 is eight, all in flight."""


def launches(kv_layer: Tensor, block_table: Tensor, num_tokens: int, out: Tensor) -> Sequence[Launch]:
    _, num_blocks, num_kv, block_size, head_dim = kv_layer.shape
    args = (kv_layer, block_table, out, num_tokens, num_blocks, num_kv, out.shape[2])
    constants = {
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "num_warps": NUM_WARPS,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    num_programs = triton.cdiv(num_tokens, block_size) * 2 * num_kv
    return [Launch(gather_kv_kernel, num_programs, args, constants)]
