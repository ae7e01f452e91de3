"""One program per row."""

import triton
import triton.language as tl

from semipd_kernels.dependent.kernel import wait_for_earlier_kernels


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    out_stride,
    hidden_size,
    eps,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """ADD: the row is x + residual, rounded and stored in residual. Else residual is not touched."""
    wait_for_earlier_kernels(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * x_stride
    residual_row = residual_ptr + row * residual_stride
    out_row = out_ptr + row * out_stride
    columns = tl.arange(0, TILE)
    if ONE_TILE:
        mask = columns < hidden_size
        values = _load(x_row, residual_row, columns, mask, ADD)
        wide = values.to(tl.float32)
        scale = tl.math.rsqrt(tl.sum(wide * wide, axis=0) / hidden_size + eps)
        weights = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_row + columns, (wide * scale * weights).to(values.dtype), mask=mask)
    else:
        squares = tl.zeros([TILE], tl.float32)
        for start in range(0, hidden_size, TILE):
            mask = start + columns < hidden_size
            wide = _load(x_row, residual_row, start + columns, mask, ADD).to(tl.float32)
            squares += wide * wide
        scale = tl.math.rsqrt(tl.sum(squares, axis=0) / hidden_size + eps)
        source_row = residual_row if ADD else x_row
        if ADD:
            # Each thread reads back what it wrote only if both loops share a layout: do not count on it.
            tl.debug_barrier()
        for start in range(0, hidden_size, TILE):
            mask = start + columns < hidden_size
            values = tl.load(source_row + start + columns, mask=mask, other=0.0)
            weights = tl.load(weight_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
            normed = values.to(tl.float32) * scale * weights
            tl.store(out_row + start + columns, normed.to(values.dtype), mask=mask)


@triton.jit
def _load(x_row, residual_row, columns, mask, ADD: tl.constexpr):
    values = tl.load(x_row + columns, mask=mask, other=0.0)
    if ADD:
        residual = tl.load(residual_row + columns, mask=mask, other=0.0)
        values = (residual.to(tl.float32) + values.to(tl.float32)).to(values.dtype)
        tl.store(residual_row + columns, values, mask=mask)
    return values
