"""The launch: one program per work item and KV head."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from semipd_kernels.decode_attention import DecodeConfig, DecodeWorkspace, check_workspace
from semipd_kernels.decode_attention.configs import choose
from semipd_kernels.decode_attention.kernel import decode_attention_kernel
from semipd_kernels.decode_attention.splits import choose_num_splits
from semipd_kernels.dependent import dependence
from semipd_kernels.launches import Launch

MIN_ROWS = 16
"""Rows of the smallest tensor-core tile; smaller groups are padded, which costs no memory traffic."""

MIN_BATCH_PAD = 128
"""One length per thread: a smaller number would only make more variants of the kernel."""

MERGED_WIDTH = 1024
"""Elements of a split that the merge takes at once: eight heads of 128."""

MERGED_ELEMENTS = 8192
"""Of all splits taken at once: 64 registers of each of 128 threads, at a time when the tiles are gone, and
for four heads of 128 sixteen splits. Few sequences have more; what is not there is not loaded."""

EXACT_SPLITS = 2
"""Taken at once where 32-bit products, plain multiply-adds, leave no registers (with more they spill)."""

MOST_REGISTERS = {64: 168, 128: 168, 256: 255}
"""By head dimension, of 16-bit types: with 168 three programs of 4 warps fit an SM. Without a number ptxas
aims at 128 and computes addresses anew in every tile: 300 instructions instead of 282. At D 256 it keeps to
168 by itself (Triton 3.9; 181 with 3.6), and told so it needs 330 instructions a tile instead of 286."""

INTERPRETED_ARCH = 90


def group_pad(group: int) -> int:
    return max(MIN_ROWS, int(triton.next_power_of_2(group)))


def batch_pad(batch: int) -> int:
    return max(MIN_BATCH_PAD, int(triton.next_power_of_2(batch)))


def heads_at_once(group: int, head_dim: int) -> int:
    """Of the merge; a power of two."""
    return min(int(triton.next_power_of_2(group)), MERGED_WIDTH // head_dim)


def splits_at_once(group: int, head_dim: int, item_bytes: int) -> int:
    """Of the merge; a power of two."""
    if item_bytes == 4:
        return EXACT_SPLITS
    return MERGED_ELEMENTS // (heads_at_once(group, head_dim) * head_dim)


def most_registers(head_dim: int, num_warps: int, item_bytes: int) -> int | None:
    """Of a thread, for ptxas. None: as many as it wants."""
    if item_bytes == 4:
        return None
    return MOST_REGISTERS[head_dim] if num_warps <= 4 else 128


def rows_of(kv_layer: Tensor, tile: int) -> TensorDescriptor:
    """The pool as a matrix of token rows, in boxes of `tile` rows of one block."""
    head_dim = kv_layer.shape[4]
    rows = kv_layer.numel() // head_dim
    return TensorDescriptor(kv_layer, [rows, head_dim], [head_dim, 1], [tile, head_dim])


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
    tma: bool,
) -> Sequence[Launch]:
    batch, num_heads, head_dim = q.shape
    _, num_blocks, num_kv_heads, block_size, _ = kv_layer.shape
    if config is None:
        config = choose(arch=_arch(q.device), head_dim=head_dim, num_sms=num_sms)
    tile = config.tile_of(q.element_size())
    if tma:
        tile = min(tile, block_size)
    if workspace is None and num_splits is None:
        num_splits = 1
    elif num_splits is None:
        widest = block_tables.shape[1] * block_size
        num_splits = choose_num_splits(
            batch, num_kv_heads, widest, num_sms, tile=tile, ctas_per_sm=config.ctas_per_sm
        )
    split = num_splits > 1
    # Without splits never written: any pointers do.
    parts: tuple[Tensor, ...] = (out, out, kv_lens)
    if split:
        parts = check_workspace(workspace, q, num_kv_heads, num_splits).tensors
    group = num_heads // num_kv_heads
    kv_rows = rows_of(kv_layer, tile) if tma else kv_layer
    tensors = (q, kv_layer, kv_rows, block_tables, kv_lens, out, *parts)
    strides = (q.stride(0), out.stride(0), block_tables.stride(0))
    sizes = (batch, batch * num_splits, num_blocks, num_kv_heads)
    constants = {
        "GROUP": group,
        "GROUP_PAD": group_pad(group),
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "TILE": tile,
        "BUFFERS": config.buffers,
        "TMA": tma,
        "SPLIT": split,
        "BATCH_PAD": batch_pad(batch) if split else 1,
        "HEADS_AT_ONCE": heads_at_once(group, head_dim) if split else 1,
        "SPLITS_AT_ONCE": splits_at_once(group, head_dim, q.element_size()) if split else 1,
        "num_warps": config.num_warps,
        "num_stages": 1,  # of loops that do not name their own
        "maxnreg": most_registers(head_dim, config.num_warps, q.element_size()),
        "enable_fp_fusion": True,
        **dependence(dependent),
    }
    args = (*tensors, *strides, *sizes, scale * math.log2(math.e))
    return [Launch(decode_attention_kernel, batch * num_splits * num_kv_heads, args, constants)]


def _arch(device: torch.device) -> int:
    return _cuda_arch(device.index) if device.type == "cuda" else INTERPRETED_ARCH


@cache
def _cuda_arch(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor
