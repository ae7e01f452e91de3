"""One program per block and head of keys or values: a contiguous tile of the pool and of the result."""

import triton
import triton.language as tl


# Contexts have every length, and tables are rows of a matrix: none may compile anew.
@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["table_ptr"])
def gather_kv_kernel(
    pool_ptr,
    table_ptr,
    out_ptr,
    num_tokens,
    num_blocks,
    num_kv,
    out_tokens,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    program = tl.program_id(0)
    column = program // (2 * num_kv)
    # Keys then values: two planes of the pool, and of the result.
    head = (program % (2 * num_kv)).to(tl.int64)
    plane, kv_head = head // num_kv, head % num_kv
    block = tl.load(table_ptr + column).to(tl.int64)
    rows = tl.arange(0, BLOCK_SIZE)[:, None]
    tile = rows * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    held = column * BLOCK_SIZE + rows < num_tokens
    source = ((plane * num_blocks + block) * num_kv + kv_head) * (BLOCK_SIZE * HEAD_DIM)
    values = tl.load(pool_ptr + source + tile, mask=held, other=0.0)
    target = (head * out_tokens + column * BLOCK_SIZE) * HEAD_DIM
    tl.store(out_ptr + target + tile, values, mask=held)
