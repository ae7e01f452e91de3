"""Matrices in oneDNN's own layout, packed once, in place, in memory that several processes share. CPU only.

A plain row-major matrix is rearranged by oneDNN in every call; for the few rows of a decode step that costs
as much as the product. Microseconds of one bfloat16 product [rows, 512] x [512, 2752], one thread of an EPYC
with avx512_bf16, torch 2.13 (`scripts/bench_linear.py`):

| rows | plain | packed |
|---|---|---|
| 1 | 118 | 57 |
| 8 | 190 | 121 |
| 32 | 481 | 412 |
| 512 | 6494 | 6347 |

torch can make such a tensor but not over memory of ours; the C functions it offers to compiled models can
(`aoti_torch_create_tensor_from_blob_v2` of torch/csrc/inductor/aoti_torch/c/shim.h, part of its stable ABI).
Where any of this is missing or fails its trial, `can_pack` says so and the plain layout is used.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from semipd.checkpoints.layout import WeightsLayout
from semipd.checkpoints.weights import weight_views

_ROWS_HINT = 8
"""oneDNN may choose the layout by the number of rows; with more than one it was the same for 2 to 512."""

_MKLDNN_LAYOUT = 3
"""c10::Layout::Mkldnn."""

Packed = dict[str, bytes]
"""Weight name to oneDNN's description of its layout; equal in every process on one machine."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [rows, inputs] times `weight` [outputs, inputs], plain or packed."""
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return functional.linear(x, weight, bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and CPU can, tried on a small matrix."""
    plain = torch.arange(64 * 64, dtype=torch.float32).remainder(7).to(dtype).view(64, 64)
    x = torch.ones(3, 64, dtype=dtype)
    try:
        packed = plain.clone()
        description = _pack_in_place(packed)
        if description is None:
            return False
        return torch.equal(linear(x, _over(packed, description), None), functional.linear(x, plain))
    except (RuntimeError, AttributeError, OSError):
        return False


def pack_weights(layout: WeightsLayout, buffer: Tensor) -> Packed:
    """Rearrange the matrices of a filled `buffer` in place; those that cannot be, or whose packed size
    differs, stay plain."""
    views = weight_views(layout, buffer)
    tried = {spec.name: _pack_in_place(views[spec.name]) for spec in layout.tensors if spec.packable}
    return {name: description for name, description in tried.items() if description is not None}


def packed_views(layout: WeightsLayout, buffer: Tensor, packed: Packed) -> dict[str, Tensor]:
    """`weight_views`, the packed matrices as oneDNN tensors over the same memory."""
    views = weight_views(layout, buffer)
    return views | {name: _over(views[name], description) for name, description in packed.items()}


def _pack_in_place(matrix: Tensor) -> bytes | None:
    """Overwrite `matrix` with its packed form; None, and nothing done, when that has another size or oneDNN
    cannot pack this format on this CPU."""
    ops = torch.ops.mkldnn
    try:
        packed = ops._reorder_linear_weight(matrix, _ROWS_HINT)
    except RuntimeError:
        return None
    if ops._nbytes(packed) != matrix.nbytes:
        return None
    ctypes.memmove(matrix.data_ptr(), ops.data_ptr(packed), matrix.nbytes)
    return bytes(ops._get_mkldnn_serialized_md(packed).numpy())


def _over(matrix: Tensor, description: bytes) -> Tensor:
    """A oneDNN tensor over the memory of `matrix`, whose contents are packed already."""
    library, handle = _library(), ctypes.c_void_p()
    code = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[matrix.dtype]
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(matrix.data_ptr()),
        ctypes.c_int64(matrix.dim()),
        (ctypes.c_int64 * matrix.dim())(*matrix.shape),
        (ctypes.c_int64 * matrix.dim())(*matrix.stride()),
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(library, f"aoti_torch_dtype_{code}")()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(_MKLDNN_LAYOUT),
        description,
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise RuntimeError("torch refuses a oneDNN tensor over foreign memory")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    aoti: Any = torch._C._aoti
    tensor: Tensor = aoti.alloc_tensor_by_stealing_from_void_ptr(capsule(handle, None, None))
    tensor.__dict__["memory"] = matrix  # which it does not own, but must not outlive
    return tensor


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
