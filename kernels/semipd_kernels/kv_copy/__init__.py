"""Copies of keys and values: block to block, and between the paged pool and one tensor per sequence.

Bits move as they are, so every dtype works; the caller orders these copies with whoever else uses the blocks.
"""

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.kv_copy.reference import (
    copy_blocks_reference,
    gather_kv_reference,
    scatter_kv_reference,
)

INDEX_DTYPES = (torch.int32, torch.int64)
VECTOR_BYTES = 16


def copy_blocks(pool: Tensor, src_blocks: Tensor, dst_blocks: Tensor, *, num_sms: int) -> None:
    """Copy block src_blocks[i] to block dst_blocks[i] in all layers, keys and values.

    A pair with a number outside the pool, such as -1 in a list that is padded for a captured graph, is
    skipped. No destination may stand twice in the lists, as destination or as source: pairs run in any order.
    That is not checked, the lists are on the device.

    Args:
        pool: [layers, 2, blocks, kv heads, block size, D], contiguous; D a multiple of 16 bytes.
        src_blocks, dst_blocks: [N] int32 or int64, both of one dtype.
        num_sms: SMs that the launch may fill.

    Raises:
        SemipdError: `unsupported_kernel` for other shapes, dtypes or layouts.
    """
    _check_pool("copy_blocks", pool, num_sms)
    _check_index("copy_blocks", "src_blocks", src_blocks)
    _check_index("copy_blocks", "dst_blocks", dst_blocks)
    if src_blocks.shape != dst_blocks.shape or src_blocks.dtype != dst_blocks.dtype:
        _refuse(
            f"copy_blocks needs lists of one length and dtype; got {list(src_blocks.shape)} "
            f"{src_blocks.dtype} and {list(dst_blocks.shape)} {dst_blocks.dtype}"
        )
    if not takes_triton(pool):
        copy_blocks_reference(pool, src_blocks, dst_blocks)
    elif pool.numel() and src_blocks.numel():
        from semipd_kernels.kv_copy.launch import launch_copy

        launch_copy(pool, src_blocks, dst_blocks, num_sms)


def gather_kv(pool: Tensor, block_table: Tensor, out: Tensor, *, num_sms: int) -> Tensor:
    """Fill `out` with a sequence's first T tokens from the pool; returns it.

    Args:
        pool: [layers, 2, blocks, kv heads, block size, D], contiguous; D a multiple of 16 bytes. A slice of
            the layers is contiguous too.
        block_table: [W] int32 or int64, W * block size at least T. Tokens in a block outside the pool are
            left as they are in `out`.
        out: [layers, 2, T, kv heads, D] of the pool's dtype, contiguous.
        num_sms: SMs that the launch may fill.

    Raises:
        SemipdError: `unsupported_kernel` for other shapes, dtypes or layouts.
    """
    _check_transfer("gather_kv", pool, block_table, out, num_sms)
    if not takes_triton(pool):
        gather_kv_reference(pool, block_table, out)
    elif out.numel():
        from semipd_kernels.kv_copy.launch import launch_transfer

        launch_transfer(pool, block_table, out, num_sms, to_pool=False)
    return out


def scatter_kv(kv: Tensor, block_table: Tensor, pool: Tensor, *, num_sms: int) -> None:
    """Write a sequence's first T tokens into its blocks; the slots behind them keep what they hold.

    Args:
        kv: [layers, 2, T, kv heads, D] of the pool's dtype, contiguous.
        block_table: [W] int32 or int64, W * block size at least T, no block twice. Tokens for a block outside
            the pool are skipped.
        pool: [layers, 2, blocks, kv heads, block size, D], contiguous; D a multiple of 16 bytes.
        num_sms: SMs that the launch may fill.

    Raises:
        SemipdError: `unsupported_kernel` for other shapes, dtypes or layouts.
    """
    _check_transfer("scatter_kv", pool, block_table, kv, num_sms)
    if not takes_triton(pool):
        scatter_kv_reference(kv, block_table, pool)
    elif kv.numel():
        from semipd_kernels.kv_copy.launch import launch_transfer

        launch_transfer(pool, block_table, kv, num_sms, to_pool=True)


def _check_pool(op: str, pool: Tensor, num_sms: int) -> None:
    if pool.dim() != 6 or pool.shape[1] != 2 or not pool.is_contiguous():
        _refuse(
            f"{op} needs a contiguous pool [layers, 2, blocks, kv heads, block size, D]; "
            f"got {list(pool.shape)} with strides {pool.stride()}"
        )
    if pool.shape[5] * pool.itemsize % VECTOR_BYTES:
        _refuse(f"{op} needs heads of a multiple of {VECTOR_BYTES} bytes; got {pool.shape[5]} {pool.dtype}")
    if num_sms < 1:
        _refuse(f"{op} needs at least one SM; got {num_sms}")


def _check_transfer(op: str, pool: Tensor, block_table: Tensor, kv: Tensor, num_sms: int) -> None:
    _check_pool(op, pool, num_sms)
    _check_index(op, "block_table", block_table)
    num_layers, _, _, num_heads, block_size, head_dim = pool.shape
    if (
        kv.dim() != 5
        or (*kv.shape[:2], *kv.shape[3:]) != (num_layers, 2, num_heads, head_dim)
        or kv.dtype != pool.dtype
        or not kv.is_contiguous()
    ):
        _refuse(
            f"{op} needs contiguous tokens [{num_layers}, 2, T, {num_heads}, {head_dim}] {pool.dtype}; "
            f"got {list(kv.shape)} {kv.dtype} with strides {kv.stride()}"
        )
    if block_table.shape[0] * block_size < kv.shape[2]:
        _refuse(
            f"{op} needs a block table for {kv.shape[2]} tokens; "
            f"it names {block_table.shape[0]} blocks of {block_size}"
        )


def _check_index(op: str, name: str, index: Tensor) -> None:
    if index.dim() != 1 or index.dtype not in INDEX_DTYPES or not index.is_contiguous():
        _refuse(f"{op} needs {name} [N] int32 or int64, contiguous; got {list(index.shape)} {index.dtype}")


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"{sentence}.")
