"""Launch shape of the norm: one program per row.

Not persistent: rows are independent and equal, so the hardware keeps a lane's SMs full without knowing how
many there are, and in decode (few rows) latency counts, which a loop over rows would not shorten. What a
persistent loop would save is re-reading the weights: 8 KiB a row at H 4096, and those reads hit L1 or L2,
while rows come from device memory.
"""

from collections.abc import Sequence

import triton
from torch import Tensor

from semipd_kernels.dependent import dependence
from semipd_kernels.launches import Launch
from semipd_kernels.rms_norm.kernel import rms_norm_kernel

MAX_TILE = 16384
"""Elements of a row held in registers between the two uses of it: 32 a thread with 16 warps. Longer rows are
read twice, the second time from L2."""


def tile_shape(hidden_size: int) -> tuple[int, int]:
    """Elements per tile and warps of a program: 16 elements a thread (two 16-byte loads of bf16)."""
    tile = min(triton.next_power_of_2(hidden_size), MAX_TILE)
    return tile, min(16, max(1, tile // 512))


def launches(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, eps: float, add: bool, dependent: bool
) -> Sequence[Launch]:
    num_rows, hidden_size = x.shape
    tile, num_warps = tile_shape(hidden_size)
    strides = (x.stride(0), residual.stride(0), out.stride(0))
    constants = {
        "ADD": add,
        "TILE": tile,
        "ONE_TILE": hidden_size <= tile,
        "num_warps": num_warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
        **dependence(dependent),
    }
    args = (x, residual, weight, out, *strides, hidden_size, eps)
    return [Launch(rms_norm_kernel, num_rows, args, constants)]
