"""One program per tile of one row."""

import triton
import triton.language as tl

from semipd_kernels.dependent.kernel import wait_for_earlier_kernels


@triton.jit
def silu_mul_kernel(
    gate_up_ptr,
    out_ptr,
    gate_up_stride,
    out_stride,
    width,
    tiles,
    TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_earlier_kernels(DEPENDENT)
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * TILE + tl.arange(0, TILE)
    mask = columns < width
    gate_row = gate_up_ptr + row * gate_up_stride
    gate = tl.load(gate_row + columns, mask=mask, other=0.0)
    up = tl.load(gate_row + width + columns, mask=mask, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out_ptr + row * out_stride + columns, (activated.to(tl.float32) * up).to(gate.dtype), mask=mask)
