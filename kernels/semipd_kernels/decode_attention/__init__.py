"""Attention of one query token per sequence over the paged KV pool, split over the keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd_kernels.decode_attention.configs import DecodeConfig
from semipd_kernels.decode_attention.reference import decode_attention_reference
from semipd_kernels.decode_attention.splits import choose_num_splits, most_items
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache

__all__ = [
    "DecodeConfig",
    "DecodeWorkspace",
    "choose_num_splits",
    "decode_attention",
    "decode_workspace",
    "most_items",
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (64, 128, 256)
MIN_BLOCK_SIZE = 16
TMA_BLOCK_SIZE = 64
MAX_GROUP = 64
"""Query heads per KV head: one tile of rows."""


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """Where the splits of one launch leave their results until the last of them merges. Launches that run one
    after the other may share it, also those of different batch sizes; two that may overlap may not. A launch
    runs whole, or its CUDA context is lost and the workspace with it: so none begins with what another left.

    Attributes:
        partial_out: [items, heads, D] float32, items = batch * num_splits.
        partial_lse: [items, heads] float32, log2 of the sum of exponentials.
        counters: [batch, kv heads] int32, splits that have arrived. Zero before and after every launch.
    """

    partial_out: Tensor
    partial_lse: Tensor
    counters: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.partial_out, self.partial_lse, self.counters


def decode_workspace(
    batch: int, heads: int, kv_heads: int, head_dim: int, num_items: int, device: torch.device
) -> DecodeWorkspace:
    """Room for any launch with these heads, at most `batch` rows and at most `num_items` items (`most_items`
    of a lane, or batch * num_splits).

    4 * num_items * heads * (head_dim + 1) bytes, and a little.
    """
    return DecodeWorkspace(
        torch.empty(num_items, heads, head_dim, device=device),
        torch.empty(num_items, heads, device=device),
        torch.zeros(batch, kv_heads, dtype=torch.int32, device=device),
    )


def decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    kv_lens: Tensor,
    *,
    num_sms: int,
    scale: float | None = None,
    num_splits: int | None = None,
    out: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
    config: DecodeConfig | None = None,
    dependent: bool = False,
    tma: bool = False,
) -> Tensor:
    """softmax(q keys^T * scale) values for each row, over the row's first `kv_lens` tokens; fp32 inside.

    Safe in a captured graph: the grid follows from shapes, lengths are read on the device. Memory is
    allocated only for an output that is not passed in. Nothing is read from slots beyond a context, nor from
    table entries beyond its last block. How keys are split depends on all lengths of the batch, so the last
    bits of a row do too.

    Args:
        q: [B, heads, D] bf16, fp16 or fp32, D 64, 128 or 256; heads of a row contiguous, rows at any stride.
        kv_layer: [2 (keys, values), blocks, kv heads, block_size, D] of q's dtype, contiguous; block_size a
            power of two, at least 16. Heads are a multiple of kv heads, at most 64 times as many.
        block_tables: [B, W] int32, rows at any stride; W * block_size >= max(kv_lens).
        kv_lens: [B] int32; 0 marks a padded row: its output is zeros.
        num_sms: of the lane the kernel will run on; sizes the work, decides nothing about the result.
        scale: default D ** -0.5.
        num_splits: from `choose_num_splits`; default its choice for contexts as wide as the tables, or 1
            without a workspace.
        out: like q; rows at any stride.
        workspace: from `decode_workspace`; unused when num_splits is 1, needed when it is more.
        config: default `configs.choose` for the device, D and num_sms.
        dependent: launch by programmatic dependent launch, see semipd_kernels.dependent; from sm_90.
        tma: tiles are loaded by the tensor memory accelerator, from sm_90; 16-bit types, blocks of at least
            TMA_BLOCK_SIZE tokens. Then slots beyond a context are read, and what they hold has no effect.

    Returns:
        `out`, or a new contiguous tensor.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts, or a workspace too small.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tensors = (q, kv_layer, block_tables, kv_lens, out)
    if takes_triton(q):
        parts = () if workspace is None else workspace.tensors
        _LAUNCHES.run((*tensors, *parts), scale, num_sms, num_splits, config, dependent, tma)
        return out
    _check(*tensors, num_sms, num_splits, tma)
    decode_attention_reference(q, kv_layer, block_tables, kv_lens, scale, out)
    return out


def _plan(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, kv_lens: Tensor, out: Tensor, *rest: Any
) -> Sequence[Launch]:
    """`rest`: the tensors of the workspace, if there is one, then what follows them in `run`."""
    from semipd_kernels.decode_attention.launch import launches

    *parts, scale, num_sms, num_splits, config, dependent, tma = rest
    _check(q, kv_layer, block_tables, kv_lens, out, num_sms, num_splits, tma)
    workspace = DecodeWorkspace(*parts) if parts else None
    if not q.shape[0]:
        return ()
    return launches(
        q, kv_layer, block_tables, kv_lens, scale, out, num_sms, num_splits, workspace, config, dependent, tma
    )


_LAUNCHES = LaunchCache(_plan)


def check_workspace(
    workspace: DecodeWorkspace | None, q: Tensor, num_kv_heads: int, num_splits: int
) -> DecodeWorkspace:
    """Raises SemipdError when `num_splits` of every row of `q` do not fit."""
    batch, heads, head_dim = q.shape
    if workspace is None or not _holds(workspace, batch * num_splits, (batch, num_kv_heads), q.shape[1:]):
        got = "none" if workspace is None else str([list(tensor.shape) for tensor in workspace.tensors])
        made = f"decode_workspace({batch}, {heads}, {num_kv_heads}, {head_dim}, {batch * num_splits}, device)"
        _refuse(f"needs a workspace for {batch} rows in {num_splits} splits each, {made}; got {got}")
    return workspace


def _holds(
    workspace: DecodeWorkspace, num_items: int, counters: tuple[int, int], head: Sequence[int]
) -> bool:
    items, *rest = workspace.partial_out.shape
    rows, kv_heads = workspace.counters.shape
    return (
        items >= num_items
        and rest == [*head]
        and workspace.partial_lse.shape == (items, head[0])
        and rows >= counters[0]
        and kv_heads == counters[1]
    )


def _check(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    num_sms: int,
    num_splits: int | None,
    tma: bool,
) -> None:
    _check_query(q, kv_layer)
    if tma:
        _check_tma(kv_layer)
    _check_batch(q, block_tables, kv_lens)
    if num_sms < 1 or (num_splits is not None and num_splits < 1):
        _refuse(f"needs at least one SM and one split; got num_sms {num_sms}, num_splits {num_splits}")
    if out.shape != q.shape or out.dtype != q.dtype or out.stride()[1:] != (q.shape[2], 1):
        _refuse(f"writes {_layout(q)}; out is {_layout(out)}")


def _check_query(q: Tensor, kv_layer: Tensor) -> None:
    if q.dim() != 3 or q.dtype not in DTYPES or q.shape[2] not in HEAD_DIMS:
        _refuse(
            f"takes q [B, heads, D] of a 16- or 32-bit float dtype with D in {HEAD_DIMS}; got {_layout(q)}"
        )
    head_dim = q.shape[2]
    if q.stride()[1:] != (head_dim, 1):
        _refuse(f"needs the heads of a row contiguous; q is {_layout(q)}")
    if (
        kv_layer.dim() != 5
        or kv_layer.shape[0] != 2
        or kv_layer.shape[4] != head_dim
        or kv_layer.dtype != q.dtype
        or not kv_layer.is_contiguous()
    ):
        _refuse(
            f"needs a contiguous {q.dtype} pool [2, blocks, kv heads, block size, {head_dim}]; "
            f"got {_layout(kv_layer)}"
        )
    num_kv_heads, block_size = kv_layer.shape[2:4]
    if block_size < MIN_BLOCK_SIZE or block_size & (block_size - 1):
        _refuse(f"needs blocks of a power of two of tokens, at least {MIN_BLOCK_SIZE}; got {block_size}")
    group, rest = divmod(q.shape[1], num_kv_heads)
    if rest or not 1 <= group <= MAX_GROUP:
        _refuse(f"needs 1 to {MAX_GROUP} whole query heads per kv head; got {q.shape[1]} for {num_kv_heads}")


def _check_tma(kv_layer: Tensor) -> None:
    num_rows = kv_layer.numel() // kv_layer.shape[4]
    if kv_layer.element_size() != 2 or kv_layer.shape[3] < TMA_BLOCK_SIZE or num_rows >= 2**31:
        _refuse(
            f"needs for TMA a pool of a 16-bit type in blocks of at least {TMA_BLOCK_SIZE} tokens, under "
            f"2^31 rows of tokens and heads; got {_layout(kv_layer)}"
        )


def _check_batch(q: Tensor, block_tables: Tensor, kv_lens: Tensor) -> None:
    batch = q.shape[0]
    if (
        block_tables.dim() != 2
        or block_tables.shape[0] != batch
        or block_tables.dtype != torch.int32
        or block_tables.stride(1) != 1
    ):
        _refuse(
            f"needs block_tables [{batch}, W] int32 with unit element stride; got {_layout(block_tables)}"
        )
    if kv_lens.shape != (batch,) or kv_lens.dtype != torch.int32 or not kv_lens.is_contiguous():
        _refuse(f"needs kv_lens [{batch}] int32, contiguous; got {_layout(kv_lens)}")


def _layout(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} strides {tensor.stride()}"


def _refuse(sentence: str) -> NoReturn:
    raise SemipdError("unsupported_kernel", f"decode_attention {sentence}.")
