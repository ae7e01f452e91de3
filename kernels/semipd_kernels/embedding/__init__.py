"""Rows of the embedding table by token id."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.embedding.reference import embedding_reference
from semipd_kernels.launches import Launch, LaunchCache

TABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ID_DTYPES = (torch.int64, torch.int32)


def embedding(
    token_ids: Tensor, table: Tensor, out: Tensor | None = None, *, dependent: bool = False
) -> Tensor:
    """`table[token_ids]`.

    Ids are validated when a request is admitted. Here an id outside [0, V) (a padded row of a captured graph,
    or the invalid token -1 of the sampler while its step is still in flight) gives a row of zeros: raising
    would need the host to wait for the device. Nothing outside the table is read.

    Args:
        token_ids: [T] int64 or int32, contiguous.
        table: [V, H] bf16, fp16 or fp32; elements of a row contiguous.
        out: [T, H] of the table's dtype, contiguous rows at any stride; a new tensor if None.
        dependent: launch by programmatic dependent launch, see semipd_kernels.dependent; from sm_90.

    Returns `out`.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    if out is None:
        out = table.new_empty(token_ids.shape[0], table.shape[-1])
    if takes_triton(table):
        _LAUNCHES.run((token_ids, table, out), dependent)
        return out
    _check(token_ids, table, out)
    return out.copy_(embedding_reference(token_ids, table))


def _plan(token_ids: Tensor, table: Tensor, out: Tensor, dependent: bool) -> Sequence[Launch]:
    from semipd_kernels.embedding.launch import launches

    _check(token_ids, table, out)
    return launches(token_ids, table, out, dependent) if out.numel() else ()


_LAUNCHES = LaunchCache(_plan)


def _check(token_ids: Tensor, table: Tensor, out: Tensor) -> None:
    if token_ids.dim() != 1 or token_ids.dtype not in ID_DTYPES or not token_ids.is_contiguous():
        raise SemipdError(
            "unsupported_kernel",
            "embedding takes contiguous token ids [T], int32 or int64; "
            f"got {list(token_ids.shape)} {token_ids.dtype}.",
        )
    if table.dim() != 2 or table.dtype not in TABLE_DTYPES or table.stride(1) != 1:
        raise SemipdError(
            "unsupported_kernel",
            "embedding takes a table [V, H] of a 16- or 32-bit float dtype with unit element stride; "
            f"got {list(table.shape)} {table.dtype} strides {table.stride()}.",
        )
    shape = (token_ids.shape[0], table.shape[1])
    if out.shape != shape or out.dtype != table.dtype or out.stride(1) != 1:
        raise SemipdError(
            "unsupported_kernel",
            f"embedding writes {list(shape)} {table.dtype} with unit element stride; "
            f"out is {list(out.shape)} {out.dtype} strides {out.stride()}.",
        )
