"""One program per tile of one row."""

import triton
import triton.language as tl

from semipd_kernels.dependent.kernel import wait_for_earlier_kernels


@triton.jit(do_not_specialize_on_alignment=["ids_ptr"])
def embedding_kernel(
    ids_ptr,
    table_ptr,
    out_ptr,
    table_stride,
    out_stride,
    vocab_size,
    width,
    tiles,
    TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    wait_for_earlier_kernels(DEPENDENT)
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    columns = (program % tiles) * TILE + tl.arange(0, TILE)
    token = tl.load(ids_ptr + row).to(tl.int64)
    readable = tl.where((token >= 0) & (token < vocab_size), width, 0)
    values = tl.load(table_ptr + token * table_stride + columns, mask=columns < readable, other=0.0)
    tl.store(out_ptr + row * out_stride + columns, values, mask=columns < width)
