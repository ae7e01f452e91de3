"""Launch shape: a tile of one row per program; nothing is reused, so nothing is gained by looping."""

from collections.abc import Sequence

import triton
from torch import Tensor

from semipd_kernels.dependent import dependence
from semipd_kernels.launches import Launch
from semipd_kernels.silu_mul.kernel import silu_mul_kernel

TILE = 2048
"""Per thread of 4 warps 16 elements of each half: two 16-byte loads of bf16 each, 8 KiB in flight each."""
NUM_WARPS = 4


def launches(gate_up: Tensor, out: Tensor, dependent: bool) -> Sequence[Launch]:
    num_rows, width = out.shape
    tiles = triton.cdiv(width, TILE)
    constants = {"TILE": TILE, "num_warps": NUM_WARPS, "num_stages": 1, "enable_fp_fusion": True}
    constants |= dependence(dependent)
    args = (gate_up, out, gate_up.stride(0), out.stride(0), width, tiles)
    return [Launch(silu_mul_kernel, num_rows * tiles, args, constants)]
