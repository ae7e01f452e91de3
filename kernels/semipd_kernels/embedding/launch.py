"""Launch shape: a tile of one row per program, so that one decode row spreads over several SMs."""

from collections.abc import Sequence

import triton
from torch import Tensor

from semipd_kernels.dependent import dependence
from semipd_kernels.embedding.kernel import embedding_kernel
from semipd_kernels.launches import Launch

TILE = 2048
"""16 elements a thread of 4 warps: two 16-byte loads of bf16."""
NUM_WARPS = 4


def launches(token_ids: Tensor, table: Tensor, out: Tensor, dependent: bool) -> Sequence[Launch]:
    num_rows, width = out.shape
    tiles = triton.cdiv(width, TILE)
    constants = {"TILE": TILE, "num_warps": NUM_WARPS, "num_stages": 1, "enable_fp_fusion": True}
    constants |= dependence(dependent)
    args = (token_ids, table, out, table.stride(0), out.stride(0), table.shape[0], width, tiles)
    return [Launch(embedding_kernel, num_rows * tiles, args, constants)]
