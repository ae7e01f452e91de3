"""The launches: workers walk over units, as many workers as keep an SM's share of the bandwidth busy."""

import torch
import triton
from torch import Tensor

from semipd_kernels.kv_copy.kernel import copy_blocks_kernel, transfer_kernel

TILE = 4096
"""32-bit words: per thread four 16-byte loads at once."""
NUM_WARPS = 8
CTAS_PER_SM = 4
"""4 x 16 KiB in flight per SM. A copy reads with half of the bandwidth: at 800 ns that takes 1.7 MB in
flight, 43 KiB on each of 40 SMs."""


def launch_copy(pool: Tensor, src_blocks: Tensor, dst_blocks: Tensor, num_sms: int) -> None:
    words = _words(pool)
    num_pairs, block_words = src_blocks.shape[0], words[0, 0, 0].numel()
    tiles = triton.cdiv(block_words, TILE)
    num_units = _num_units(pool.shape[0] * 2 * num_pairs * tiles)
    copy_blocks_kernel[(min(num_units, num_sms * CTAS_PER_SM),)](
        words,
        src_blocks,
        dst_blocks,
        pool.shape[2],
        num_units,
        num_pairs,
        tiles,
        block_words,
        TILE=TILE,
        num_warps=NUM_WARPS,
        num_stages=1,
        enable_fp_fusion=True,
    )


def launch_transfer(pool: Tensor, block_table: Tensor, kv: Tensor, num_sms: int, *, to_pool: bool) -> None:
    words = _words(pool)
    num_tokens, num_heads, block_size = kv.shape[2], kv.shape[3], pool.shape[4]
    num_columns, block_words = triton.cdiv(num_tokens, block_size), words[0, 0, 0].numel()
    tiles = triton.cdiv(block_words, TILE)
    num_units = _num_units(pool.shape[0] * 2 * num_columns * tiles)
    transfer_kernel[(min(num_units, num_sms * CTAS_PER_SM),)](
        words,
        block_table,
        _words(kv),
        pool.shape[2],
        num_units,
        num_columns,
        num_tokens,
        num_heads,
        tiles,
        block_words,
        BLOCK_SIZE=block_size,
        HEAD_WORDS=words.shape[5],
        TO_POOL=to_pool,
        TILE=TILE,
        num_warps=NUM_WARPS,
        num_stages=1,
        enable_fp_fusion=True,
    )


def _words(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


def _num_units(count: int) -> int:
    assert count < 2**31, f"{count} tiles in one launch"
    return count
