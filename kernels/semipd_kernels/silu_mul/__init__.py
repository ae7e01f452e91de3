"""SwiGLU's activation: SiLU of the gate half of each row times its up half (arXiv 2002.05202)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.silu_mul.reference import silu_mul_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def silu_mul(gate_up: Tensor, out: Tensor | None = None, *, dependent: bool = False) -> Tensor:
    """`silu(gate) * up`; fp32 inside, silu(gate) rounded to the dtype before the product as in the decoder.

    Args:
        gate_up: [T, 2 I] bf16, fp16 or fp32, gate first; elements of a row contiguous, rows at any stride.
        out: [T, I] of the same dtype, rows at any stride; a new contiguous tensor if None.
        dependent: launch by programmatic dependent launch, see semipd_kernels.dependent; from sm_90.

    Returns `out`.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    if out is None:
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[-1] // 2)
    if takes_triton(gate_up):
        _LAUNCHES.run((gate_up, out), dependent)
        return out
    _check(gate_up, out)
    return out.copy_(silu_mul_reference(gate_up))


def _plan(gate_up: Tensor, out: Tensor, dependent: bool) -> Sequence[Launch]:
    from semipd_kernels.silu_mul.launch import launches

    _check(gate_up, out)
    return launches(gate_up, out, dependent) if out.numel() else ()


_LAUNCHES = LaunchCache(_plan)


def _check(gate_up: Tensor, out: Tensor) -> None:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or gate_up.dtype not in DTYPES or gate_up.stride(1) != 1:
        raise SemipdError(
            "unsupported_kernel",
            "silu_mul takes rows [T, 2 I] of a 16- or 32-bit float dtype with unit element stride; "
            f"got {list(gate_up.shape)} {gate_up.dtype} strides {gate_up.stride()}.",
        )
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    if out.shape != shape or out.dtype != gate_up.dtype or out.stride(1) != 1:
        raise SemipdError(
            "unsupported_kernel",
            f"silu_mul writes {list(shape)} {gate_up.dtype} with unit element stride; "
            f"out is {list(out.shape)} {out.dtype} strides {out.stride()}.",
        )
