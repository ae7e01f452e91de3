"""Causal attention of query chunks over the paged KV pool."""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.prefill_attention.configs import PrefillConfig
from semipd_kernels.prefill_attention.plan import PaddedSize, PrefillPlan, plan_prefill
from semipd_kernels.prefill_attention.reference import prefill_attention_reference

__all__ = ["PaddedSize", "PrefillConfig", "PrefillPlan", "plan_prefill", "prefill_attention"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (64, 128, 256)
MIN_BLOCK_SIZE = 16


def prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    plan: PrefillPlan,
    *,
    num_sms: int,
    scale: float | None = None,
) -> Tensor:
    """Attend with each sequence's last tokens to all its tokens up to themselves; returns `out`, filled.

    Sequence s owns the rows query_starts[s] to query_starts[s + 1]; its row i is token
    kv_lens[s] - (number of its rows) + i. Single rows (decode) and chunks mix in any order. Query head h
    reads kv head h // (heads / kv heads). Keys and values of this step's tokens are in the pool already.

    Scores, softmax and sums are fp32; the probabilities are rounded to q's dtype before they meet the values,
    and fp32 inputs are multiplied in full fp32 (no TF32). The result does not depend on `num_sms` nor on
    which worker computes what: the same inputs and plan give the same bits.

    Neither synchronises nor allocates on the device. Workers share counters in `plan.items`, so launches of
    one plan must not run at the same time; layers on one stream do not. A captured launch reads items, tables
    and lengths anew; it serves every step whose plan was padded to the same size. Rows that belong to no
    sequence are not written.

    Args:
        q: [T, heads, D] bf16, fp16 or fp32, D 64, 128 or 256; heads of a row contiguous, rows at any stride
            (16-byte loads need a stride divisible by 16).
        kv_layer: one layer's [2 (keys, values), blocks, kv heads, block size, D] of q's dtype, contiguous;
            block size a power of two from 16. Slots that hold no token may contain anything.
        block_tables: [S, W] int32, rows at any stride; entries past the context are not read.
        query_starts: [S + 1] int32, rising from 0 to at most T.
        kv_lens: [S] int32, at least as long as the sequence's rows.
        out: [T, heads, D] of q's dtype; heads of a row contiguous, rows at any stride.
        plan: of the same lengths, with `plan.items` on q's device. CPU tensors need none of it: the reference
            computes them unless Triton's interpreter runs.
        num_sms: SMs the launch may fill, for example those of the lane.
        scale: of the scores, above 0; None: D ** -0.5.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if takes_triton(q):
        tensors = (q, kv_layer, block_tables, query_starts, kv_lens, out, plan.items)
        _LAUNCHES.run(tensors, plan.config, plan.num_seqs, plan.num_rows, num_sms, scale)
        return out
    _check(q, kv_layer, block_tables, query_starts, kv_lens, out, plan, num_sms, scale)
    return prefill_attention_reference(q, kv_layer, block_tables, query_starts, kv_lens, out, scale)


def _plan(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    items: Tensor,
    config: PrefillConfig,
    num_seqs: int,
    num_rows: int,
    num_sms: int,
    scale: float,
) -> Sequence[Launch]:
    from semipd_kernels.prefill_attention.launch import launches

    plan = PrefillPlan(items, config, num_seqs, num_rows)
    _check(q, kv_layer, block_tables, query_starts, kv_lens, out, plan, num_sms, scale)
    if not q.shape[0]:
        return ()
    return launches(q, kv_layer, block_tables, query_starts, kv_lens, out, plan, num_sms, scale)


_LAUNCHES = LaunchCache(_plan)


def _check(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    plan: PrefillPlan,
    num_sms: int,
    scale: float,
) -> None:
    _check_pool(q, kv_layer, out)
    _check_sequences(q, block_tables, query_starts, kv_lens, plan)
    if num_sms < 1 or not scale > 0:
        _refuse(f"needs at least one SM and a scale above 0; got {num_sms} SMs and scale {scale}")


def _check_pool(q: Tensor, kv_layer: Tensor, out: Tensor) -> None:
    if q.dim() != 3 or q.dtype not in DTYPES or q.shape[2] not in HEAD_DIMS:
        _refuse(
            f"takes q [T, heads, D] of a 16- or 32-bit float dtype with D in {HEAD_DIMS}; "
            f"got {list(q.shape)} {q.dtype}"
        )
    head_dim = q.shape[2]
    if kv_layer.dim() != 5 or kv_layer.shape[0] != 2 or kv_layer.shape[4] != head_dim:
        _refuse(
            f"needs one layer [2, blocks, kv heads, block size, {head_dim}] of the pool; "
            f"got {list(kv_layer.shape)}"
        )
    num_kv, block_size = kv_layer.shape[2:4]
    if kv_layer.dtype != q.dtype or not kv_layer.is_contiguous():
        _refuse(
            f"needs a contiguous pool of q's dtype {q.dtype}; "
            f"got {kv_layer.dtype} with strides {kv_layer.stride()}"
        )
    if block_size < MIN_BLOCK_SIZE or block_size & (block_size - 1):
        _refuse(f"needs blocks of a power of two of tokens, at least {MIN_BLOCK_SIZE}; got {block_size}")
    if not num_kv or q.shape[1] % num_kv:
        _refuse(f"needs a multiple of the pool's {num_kv} kv heads; got {q.shape[1]} query heads")
    if out.shape != q.shape or out.dtype != q.dtype:
        _refuse(f"needs out like q, {list(q.shape)} {q.dtype}; got {list(out.shape)} {out.dtype}")
    for name, rows in (("q", q), ("out", out)):
        if rows.stride()[1:] != (head_dim, 1):
            _refuse(f"needs the heads of a row contiguous; {name} has strides {rows.stride()}")


def _check_sequences(
    q: Tensor, block_tables: Tensor, query_starts: Tensor, kv_lens: Tensor, plan: PrefillPlan
) -> None:
    num_seqs = plan.num_seqs
    if (
        block_tables.dim() != 2
        or block_tables.shape[0] != num_seqs
        or block_tables.dtype != torch.int32
        or block_tables.stride(1) != 1
    ):
        _refuse(
            f"needs block_tables [{num_seqs}, W] int32 with contiguous rows; "
            f"got {list(block_tables.shape)} {block_tables.dtype} with strides {block_tables.stride()}"
        )
    lengths = (("query_starts", query_starts, num_seqs + 1), ("kv_lens", kv_lens, num_seqs))
    for name, index, size in lengths:
        if index.shape != (size,) or index.dtype != torch.int32 or not index.is_contiguous():
            _refuse(f"needs {name} [{size}] int32, contiguous; got {list(index.shape)} {index.dtype}")
    if plan.num_rows != q.shape[0]:
        _refuse(f"needs the plan of this step with {q.shape[0]} rows; it is of {plan.num_rows}")


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"prefill_attention {sentence}.")
