"""Two launches: tiles, then rows."""

import torch
from torch import Tensor

from semipd_kernels.sampling import shape
from semipd_kernels.sampling.logprobs.kernel import row_logprobs_kernel, tile_logprobs_kernel


def launch(logits: Tensor, tokens: Tensor, num_top: Tensor, max_top: int) -> tuple[Tensor, Tensor, Tensor]:
    (num_rows, vocab_size), device = logits.shape, logits.device
    tiles = shape.num_tiles(vocab_size)

    def empty(*dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(dims, dtype=dtype, device=device)

    sums = (empty(num_rows, tiles), empty(num_rows, tiles))
    candidates = empty(num_rows, tiles, max(max_top, 1), dtype=torch.int64)
    own, values = empty(num_rows), empty(num_rows, max_top)
    ids = empty(num_rows, max_top, dtype=torch.int32)
    sizes = (logits.stride(0), vocab_size, tiles)
    tile_logprobs_kernel[(num_rows * tiles,)](
        logits,
        num_top,
        *sums,
        candidates,
        *sizes,
        TILE=shape.TILE,
        MAX_TOP=max_top,
        num_warps=shape.NUM_WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )
    row_logprobs_kernel[(num_rows,)](
        logits,
        tokens,
        num_top,
        *sums,
        candidates,
        own,
        ids,
        values,
        *sizes,
        TILES=shape.power_of_2(tiles),
        MAX_TOP=max_top,
        CANDIDATES=shape.power_of_2(tiles * max(max_top, 1)),
        num_warps=shape.NUM_WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return own, ids, values
