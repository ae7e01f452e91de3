"""Launch shapes: one program per work item and KV head, then one per sequence and head to merge."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import triton
from torch import Tensor

from semipd_kernels.decode_attention import DecodeConfig, DecodeWorkspace, check_workspace, workspace_parts
from semipd_kernels.decode_attention.configs import choose
from semipd_kernels.decode_attention.kernel import decode_attention_kernel, merge_splits_kernel
from semipd_kernels.decode_attention.splits import choose_num_splits
from semipd_kernels.dependent import dependence
from semipd_kernels.launches import Launch, Scratch

MIN_ROWS = 16
"""Rows of the smallest tensor-core tile; smaller groups are padded, which costs no memory traffic."""

MIN_BATCH_PAD = 128
"""One length per thread: a smaller number would only make more variants of the kernel."""

SPLITS_TILE = 32
"""Partial results merged at once: at D 128 16 KiB, 32 registers of each of 128 threads. Most sequences have
fewer splits; what is not there is not loaded."""

MERGE_WARPS = 4

INTERPRETED_ARCH = 90


def group_pad(group: int) -> int:
    return max(MIN_ROWS, int(triton.next_power_of_2(group)))


def batch_pad(batch: int) -> int:
    return max(MIN_BATCH_PAD, int(triton.next_power_of_2(batch)))


def launches(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    kv_lens: Tensor,
    scale: float,
    out: Tensor,
    num_sms: int,
    num_splits: int | None,
    workspace: DecodeWorkspace | None,
    config: DecodeConfig | None,
    dependent: bool,
) -> Sequence[Launch]:
    batch, num_heads, head_dim = q.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv_layer.shape
    if config is None:
        config = choose(arch=_arch(q.device), head_dim=head_dim, num_sms=num_sms)
    tile = config.tile_of(q.element_size())
    if num_splits is None:
        widest = block_tables.shape[1] * block_size
        num_splits = choose_num_splits(
            batch, num_kv_heads, widest, num_sms, tile=tile, ctas_per_sm=config.ctas_per_sm
        )
    split = num_splits > 1
    # Without splits never written: any pointers do.
    parts: tuple[Tensor | Scratch, ...] = (out, out, kv_lens)
    if split and workspace is not None:
        check_workspace(workspace, q, num_splits)
        parts = workspace.tensors
    elif split:
        parts = tuple(Scratch(*part) for part in workspace_parts(batch, num_heads, head_dim, num_splits))
    partial_out, partial_lse, spans = parts
    group = num_heads // num_kv_heads
    tensors = (q, kv_layer, block_tables, kv_lens, out, partial_out, partial_lse, spans)
    strides = (q.stride(0), out.stride(0), block_tables.stride(0))
    sizes = (batch, batch * num_splits, num_blocks, num_kv_heads)
    constants = {
        "GROUP": group,
        "GROUP_PAD": group_pad(group),
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "TILE": tile,
        "BUFFERS": config.buffers,
        "SPLIT": split,
        "BATCH_PAD": batch_pad(batch) if split else 1,
        "num_warps": config.num_warps,
        "num_stages": 1,  # of loops that do not name their own
        "enable_fp_fusion": True,
        **dependence(dependent),
    }
    args = (*tensors, *strides, *sizes, scale * math.log2(math.e))
    attend = Launch(decode_attention_kernel, batch * num_splits * num_kv_heads, args, constants)
    return [attend, _merge(kv_lens, spans, partial_out, partial_lse, out, dependent)] if split else [attend]


def _merge(
    kv_lens: Tensor,
    spans: Tensor | Scratch,
    partial_out: Tensor | Scratch,
    partial_lse: Tensor | Scratch,
    out: Tensor,
    dependent: bool,
) -> Launch:
    batch, num_heads, head_dim = out.shape
    constants = {
        "HEAD_DIM": head_dim,
        "SPLITS_TILE": SPLITS_TILE,
        "num_warps": MERGE_WARPS,
        "num_stages": 1,
        "enable_fp_fusion": True,
        **dependence(dependent),
    }
    args = (kv_lens, spans, partial_out, partial_lse, out, out.stride(0), num_heads)
    return Launch(merge_splits_kernel, batch * num_heads, args, constants)


def _arch(device: torch.device) -> int:
    return _cuda_arch(device.index) if device.type == "cuda" else INTERPRETED_ARCH


@cache
def _cuda_arch(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor
