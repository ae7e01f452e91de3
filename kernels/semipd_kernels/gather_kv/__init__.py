"""One sequence's keys and values, copied out of the paged pool: for attention that cannot read pages."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.gather_kv.reference import gather_kv_reference
from semipd_kernels.launches import Launch, LaunchCache

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MIN_BLOCK_SIZE = 16
HEAD_DIMS = (64, 128, 256)


def gather_kv(kv_layer: Tensor, block_table: Tensor, num_tokens: int, out: Tensor) -> Tensor:
    """The first tokens of a sequence, in order.

    Args:
        kv_layer: one layer's [2 (keys, values), blocks, kv heads, block size, D] bf16, fp16 or fp32,
            contiguous; block size a power of two from 16 on, D 64, 128 or 256.
        block_table: [W] int32, contiguous. The entries of the first `num_tokens` tokens must name blocks of
            the pool; nothing of the others is read.
        num_tokens: at least 0, at most the tokens of W blocks and N.
        out: [2, kv heads, N, D] of the pool's dtype, contiguous. What lies behind `num_tokens` stays.

    Returns the view `out[:, :, :num_tokens]`.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    if takes_triton(kv_layer):
        _LAUNCHES.run((kv_layer, block_table, out), num_tokens)
    else:
        _check(kv_layer, block_table, out, num_tokens)
        gather_kv_reference(kv_layer, block_table, num_tokens, out)
    return out[:, :, :num_tokens]


def _plan(kv_layer: Tensor, block_table: Tensor, out: Tensor, num_tokens: int) -> Sequence[Launch]:
    from semipd_kernels.gather_kv.launch import launches

    _check(kv_layer, block_table, out, num_tokens)
    return launches(kv_layer, block_table, num_tokens, out) if num_tokens else ()


_LAUNCHES = LaunchCache(_plan)


def _check(kv_layer: Tensor, block_table: Tensor, out: Tensor, num_tokens: int) -> None:
    if kv_layer.dim() != 5 or kv_layer.shape[0] != 2 or not kv_layer.is_contiguous():
        _refuse(
            "takes a contiguous pool [2, blocks, kv heads, block size, D]; "
            f"got {list(kv_layer.shape)} strides {kv_layer.stride()}"
        )
    num_kv, block_size, head_dim = kv_layer.shape[2:]
    if kv_layer.dtype not in DTYPES or head_dim not in HEAD_DIMS:
        _refuse(
            f"takes a 16- or 32-bit float dtype with D in {HEAD_DIMS}; got {kv_layer.dtype} and {head_dim}"
        )
    if block_size < MIN_BLOCK_SIZE or block_size & (block_size - 1):
        _refuse(f"needs blocks of a power of two of tokens, at least {MIN_BLOCK_SIZE}; got {block_size}")
    if block_table.dim() != 1 or block_table.dtype != torch.int32 or not block_table.is_contiguous():
        _refuse(
            f"needs a contiguous block table [W] int32; got {list(block_table.shape)} {block_table.dtype}"
        )
    if (
        out.dim() != 4
        or (*out.shape[:2], out.shape[3]) != (2, num_kv, head_dim)
        or out.dtype != kv_layer.dtype
        or not out.is_contiguous()
    ):
        _refuse(
            f"writes [2, {num_kv}, N, {head_dim}] {kv_layer.dtype}, contiguous; "
            f"out is {list(out.shape)} {out.dtype} strides {out.stride()}"
        )
    room = min(block_table.shape[0] * block_size, out.shape[2])
    if not 0 <= num_tokens <= room:
        _refuse(f"can gather 0 to {room} tokens here, not {num_tokens}")


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"gather_kv {sentence}.")
