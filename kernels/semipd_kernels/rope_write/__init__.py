"""Query and key norm, rotary positions (arXiv 2104.09864), keys and values written into the paged pool."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.rope_write.reference import rope_write_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INDEX_DTYPES = (torch.int64, torch.int32)
HEAD_DIMS = (64, 128, 256)


def rope_write(
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    rope_scale: float,
    slot_mapping: Tensor,
    kv_pool: Tensor,
    qk_norm: Tensor | None = None,
    eps: float = 0.0,
    *,
    dependent: bool = False,
) -> None:
    """Normalise and rotate the queries in place; write normalised, rotated keys, and values, to their slots.

    The two halves of a head form the pairs (NeoX style). Every rope variant of the models is a choice of
    `frequencies` and `rope_scale`. fp32 inside, rounded once to the pool's dtype. The keys in `qkv` stay as
    they are.

    Angles are `fp32(position) * frequency` rounded to fp32, as the decoder computes them; their sine and
    cosine are within 2.5e-7 of the exact values for angles up to 2^22 (positions up to 4M).

    Args:
        qkv: [T, heads + 2 kv heads, D] bf16, fp16 or fp32, D 64, 128 or 256; heads of a row contiguous, rows
            at any stride. Order: query heads, key heads, value heads.
        positions: [T] int64 or int32, at least 0.
        frequencies: [D / 2] fp32, angle per position.
        rope_scale: factor of cosine and sine.
        slot_mapping: [T] int64 or int32, block * block_size + offset. A row whose slot is negative (a padded
            row of a captured graph) or beyond the pool is skipped: nothing of it is read or written.
        kv_pool: one layer's [2, blocks, kv heads, block_size, D] of qkv's dtype, contiguous.
        qk_norm: [heads + kv heads, D] fp32 weights of the RMS norm before the rotation; None: no norm.
        eps: of that norm; only with `qk_norm`.
        dependent: launch by programmatic dependent launch, see semipd_kernels.dependent; from sm_90.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    if takes_triton(qkv):
        weights = frequencies if qk_norm is None else qk_norm
        tensors = (qkv, positions, frequencies, slot_mapping, kv_pool, weights)
        _LAUNCHES.run(tensors, qk_norm is not None, rope_scale, eps, dependent)
    else:
        _check(qkv, positions, frequencies, slot_mapping, kv_pool, qk_norm)
        rope_write_reference(qkv, positions, frequencies, rope_scale, slot_mapping, kv_pool, qk_norm, eps)


def _plan(
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    slot_mapping: Tensor,
    kv_pool: Tensor,
    weights: Tensor,
    has_norm: bool,
    rope_scale: float,
    eps: float,
    dependent: bool,
) -> Sequence[Launch]:
    """`weights`: of the norm; without one any tensor."""
    from semipd_kernels.rope_write.launch import launches

    qk_norm = weights if has_norm else None
    _check(qkv, positions, frequencies, slot_mapping, kv_pool, qk_norm)
    if not qkv.shape[0]:
        return ()
    return launches(qkv, positions, frequencies, rope_scale, slot_mapping, kv_pool, qk_norm, eps, dependent)


_LAUNCHES = LaunchCache(_plan)


def _check(
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    slot_mapping: Tensor,
    kv_pool: Tensor,
    qk_norm: Tensor | None,
) -> None:
    if qkv.dim() != 3 or qkv.dtype not in DTYPES or qkv.shape[2] not in HEAD_DIMS:
        _refuse(
            f"takes qkv [T, heads, D] of a 16- or 32-bit float dtype with D in {HEAD_DIMS}; "
            f"got {list(qkv.shape)} {qkv.dtype}"
        )
    num_rows, num_heads, head_dim = qkv.shape
    if qkv.stride()[1:] != (head_dim, 1):
        _refuse(f"needs the heads of a row contiguous; qkv has strides {qkv.stride()}")
    if (
        kv_pool.dim() != 5
        or kv_pool.shape[0] != 2
        or kv_pool.shape[4] != head_dim
        or not kv_pool.is_contiguous()
    ):
        _refuse(
            f"needs a contiguous pool [2, blocks, kv heads, block size, {head_dim}]; "
            f"got {list(kv_pool.shape)} strides {kv_pool.stride()}"
        )
    num_kv = kv_pool.shape[2]
    if kv_pool.dtype != qkv.dtype or num_heads <= 2 * num_kv:
        _refuse(
            f"needs qkv and pool of one dtype and query heads beside 2 x {num_kv} kv heads; "
            f"got {qkv.dtype}, {kv_pool.dtype} and {num_heads} heads in all"
        )
    for name, index in (("positions", positions), ("slot_mapping", slot_mapping)):
        if index.shape != (num_rows,) or index.dtype not in INDEX_DTYPES or not index.is_contiguous():
            _refuse(
                f"needs {name} [{num_rows}] int32 or int64, contiguous; got {list(index.shape)} {index.dtype}"
            )
    vectors: list[tuple[str, Tensor, tuple[int, ...]]] = [("frequencies", frequencies, (head_dim // 2,))]
    if qk_norm is not None:
        vectors.append(("qk_norm", qk_norm, (num_heads - num_kv, head_dim)))
    for name, vector, shape in vectors:
        if vector.shape != shape or vector.dtype != torch.float32 or not vector.is_contiguous():
            _refuse(
                f"needs {name} {list(shape)} float32, contiguous; got {list(vector.shape)} {vector.dtype}"
            )


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"rope_write {sentence}.")
