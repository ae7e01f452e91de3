"""Copies in 32-bit words. A plane is the keys or the values of one layer; the pool is [planes, blocks,
block_words]. A unit is one tile of one block in one plane: contiguous in the pool, its block one scalar.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_blocks", "num_units", "num_pairs", "tiles"])
def copy_blocks_kernel(pool_ptr, src_ptr, dst_ptr, num_blocks, num_units, num_pairs, tiles, block_words,
                       TILE: tl.constexpr):  # fmt: skip
    for unit in tl.range(tl.program_id(0), num_units, tl.num_programs(0)):
        pair, plane = unit // tiles % num_pairs, unit // tiles // num_pairs
        src, dst = tl.load(src_ptr + pair), tl.load(dst_ptr + pair)
        known = (src >= 0) & (src < num_blocks) & (dst >= 0) & (dst < num_blocks)
        words = unit % tiles * TILE + tl.arange(0, TILE)
        mask = words < tl.where(known, block_words, 0)
        plane_block = plane.to(tl.int64) * num_blocks
        held = tl.load(pool_ptr + (plane_block + src) * block_words + words, mask=mask)
        tl.store(pool_ptr + (plane_block + dst) * block_words + words, held, mask=mask)


@triton.jit(do_not_specialize=["num_blocks", "num_units", "num_columns", "num_tokens", "num_heads", "tiles"])
def transfer_kernel(pool_ptr, table_ptr, kv_ptr,
                    num_blocks, num_units, num_columns, num_tokens, num_heads, tiles, block_words,
                    BLOCK_SIZE: tl.constexpr, HEAD_WORDS: tl.constexpr, TO_POOL: tl.constexpr,
                    TILE: tl.constexpr):  # fmt: skip
    """`kv` [planes, num_tokens, num_heads, HEAD_WORDS]; `num_columns` blocks of the table hold the tokens."""
    for unit in tl.range(tl.program_id(0), num_units, tl.num_programs(0)):
        column, plane = unit // tiles % num_columns, unit // tiles // num_columns
        block = tl.load(table_ptr + column)
        words = unit % tiles * TILE + tl.arange(0, TILE)
        head, slot = words // (BLOCK_SIZE * HEAD_WORDS), words // HEAD_WORDS % BLOCK_SIZE
        known_words = tl.where((block >= 0) & (block < num_blocks), block_words, 0)
        mask = (words < known_words) & (column * BLOCK_SIZE + slot < num_tokens)
        paged = pool_ptr + (plane.to(tl.int64) * num_blocks + block) * block_words + words
        first_head = (plane.to(tl.int64) * num_tokens + column * BLOCK_SIZE) * num_heads
        flat = kv_ptr + (first_head + slot * num_heads + head) * HEAD_WORDS + words % HEAD_WORDS
        if TO_POOL:
            tl.store(paged, tl.load(flat, mask=mask), mask=mask)
        else:
            tl.store(flat, tl.load(paged, mask=mask), mask=mask)
