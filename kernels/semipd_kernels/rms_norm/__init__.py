"""Root mean square norm (arXiv 1910.07467) of rows, alone or after adding them to the residual stream."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.rms_norm.reference import add_rms_norm_reference, rms_norm_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None, *, dependent: bool = False
) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, fp32 inside, rounded once.

    Args:
        x: [T, H] bf16, fp16 or fp32; elements of a row contiguous, rows at any stride.
        weight: [H] contiguous, any of the three dtypes.
        out: [T, H] of x's dtype, rows at any stride, may be `x` itself; a new contiguous tensor if None.
        dependent: launch by programmatic dependent launch, see semipd_kernels.dependent; from sm_90.

    Returns `out`. A row's result does not depend on the other rows.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if takes_triton(x):
        _LAUNCHES.run((x, x, weight, out), eps, False, dependent)
        return out
    _check(x, x, weight, out)
    return out.copy_(rms_norm_reference(x, weight, eps))


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None = None,
    *,
    dependent: bool = False,
) -> Tensor:
    """`residual += x` in place, rounded to its dtype, then `rms_norm(residual)` of the rounded sum.

    Args:
        x: [T, H], as in `rms_norm`.
        residual: [T, H] of x's dtype, rows at any stride; changed.
        weight, out, dependent: as in `rms_norm`; `out` may be `x` but not `residual`.

    Raises:
        SemipdError: as `rms_norm`.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if takes_triton(x):
        _LAUNCHES.run((x, residual, weight, out), eps, True, dependent)
        return out
    _check(x, residual, weight, out)
    return out.copy_(add_rms_norm_reference(x, residual, weight, eps))


def _plan(
    x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, eps: float, add: bool, dependent: bool
) -> Sequence[Launch]:
    from semipd_kernels.rms_norm.launch import launches

    _check(x, residual, weight, out)
    return launches(x, residual, weight, out, eps, add, dependent) if x.shape[0] else ()


_LAUNCHES = LaunchCache(_plan)


def _check(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> None:
    same = all(t.shape == x.shape and t.dtype == x.dtype and t.stride(-1) == 1 for t in (residual, out))
    if x.dim() != 2 or not x.shape[1] or x.dtype not in DTYPES or not same or x.stride(1) != 1:
        layouts = ", ".join(f"{list(t.shape)} {t.dtype} strides {t.stride()}" for t in (x, residual, out))
        raise SemipdError(
            "unsupported_kernel",
            "rms_norm takes rows [T, H] of one 16- or 32-bit float dtype with unit element stride; "
            f"got {layouts}.",
            "Make the last dimension contiguous and the dtypes equal.",
        )
    if weight.shape != x.shape[1:] or weight.dtype not in DTYPES or not weight.is_contiguous():
        raise SemipdError(
            "unsupported_kernel",
            f"rms_norm of rows of {x.shape[1]} needs as many contiguous weights; "
            f"got {list(weight.shape)} {weight.dtype} strides {weight.stride()}.",
        )
