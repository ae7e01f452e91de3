"""The sequence of launches of one sampling step. The grids depend on the shapes alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from semipd.sampling.parameters import RowParams
from semipd.sampling.stages import Stages
from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.filters import kernel as filters
from semipd_kernels.sampling.workspace import SamplingWorkspace

NO_SLOT = -1


def launch(
    logits: Tensor,
    rows: RowParams,
    stages: Stages,
    slots: Tensor,
    counts: Tensor,
    work: SamplingWorkspace,
    out: Tensor,
) -> None:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    used = _used_slots(slots, stages)
    _adjust(logits, rows, stages, used, counts, work, out)
    if stages.drawn is None:
        return
    source = (logits, work.adjusted, used, rows.temperature)
    sizes = (logits.stride(0), vocab_size, tiles)
    if stages.filters:
        histogram = (work.coarse_count, work.coarse_mass)
        _per_tile(filters.coarse_kernel, len(rows), tiles)(*source, work.best, work.state, *histogram, *sizes)
        select = _per_row(filters.select_coarse_kernel, len(rows), shape.NUM_WARPS)
        select(rows.top_k, rows.top_p, work.state, *histogram)
    for _ in range(stages.filters):
        for last in (False, True):
            _refine(rows, work, source, sizes, last)
    sums = (work.tile_mass, work.tile_ties)
    _per_tile(kernel.weigh_kernel, len(rows), tiles)(
        *source, rows.min_p, work.best, work.state, *sums, *sizes
    )
    pick = _per_row(kernel.pick_kernel, len(rows), shape.NUM_WARPS)
    seeds = (rows.seeds, rows.positions)
    constants = {"TILE": shape.TILE, "TILES": shape.power_of_2(tiles)}
    pick(*source, rows.min_p, *seeds, work.best, work.state, *sums, out, *sizes, **constants)


def _used_slots(slots: Tensor, stages: Stages) -> Tensor:
    """int32 [R]: NO_SLOT where the logits are taken as they are."""
    used = torch.full_like(slots, NO_SLOT, dtype=torch.int32)
    if stages.adjusted is not None:
        used.index_copy_(0, stages.adjusted, slots[stages.adjusted].to(torch.int32))
    return used


def _edits(stages: Stages, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if stages.edits is not None:
        return stages.edits.starts, stages.edits.tokens, stages.edits.bias, stages.edits.until
    none = like.new_zeros(0)
    return like.new_zeros(len(like) + 1), none, none.view(torch.float32), none.long()


def _adjust(
    logits: Tensor,
    rows: RowParams,
    stages: Stages,
    slots: Tensor,
    counts: Tensor,
    work: SamplingWorkspace,
    out: Tensor,
) -> None:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    penalties = (rows.repetition, rows.frequency, rows.presence)
    bests = (work.tile_best, work.tile_token)
    _per_tile(kernel.adjust_kernel, len(rows), tiles, EDITS=shape.EDITS)(
        logits,
        work.adjusted,
        counts,
        slots,
        *penalties,
        rows.positions,
        *_edits(stages, slots),
        *bests,
        logits.stride(0),
        vocab_size,
        tiles,
    )
    histograms = (work.coarse_count, work.coarse_mass, work.fine_count, work.fine_mass)
    filters = (rows.temperature, rows.top_k, rows.top_p)
    best = _per_row(kernel.best_kernel, len(rows), shape.NUM_WARPS)
    constants = {"TILES": shape.power_of_2(tiles), "DRAWS": stages.drawn is not None}
    best(*bests, *filters, work.best, work.state, *histograms, out, vocab_size, tiles, **constants)


def _refine(
    rows: RowParams,
    work: SamplingWorkspace,
    source: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    last: bool,
) -> None:
    histogram = (work.fine_count, work.fine_mass)
    refine = _per_tile(filters.refine_kernel, len(rows), sizes[2], LAST=last)
    refine(*source, work.best, work.state, *histogram, *sizes)
    select = _per_row(filters.select_fine_kernel, len(rows), shape.NUM_WARPS)
    select(rows.top_k, rows.top_p, work.state, work.coarse_mass, *histogram, LAST=last)


# No fused multiply-add in any of these: the same expressions must give the same bits in every kernel.


def _per_tile(function: Any, num_rows: int, tiles: int, **constants: Any) -> Callable[..., Any]:
    return partial(
        function[(num_rows * tiles,)],
        TILE=shape.TILE,
        num_warps=shape.NUM_WARPS,
        num_stages=1,
        enable_fp_fusion=False,
        **constants,
    )


def _per_row(function: Any, num_rows: int, num_warps: int) -> Callable[..., Any]:
    return partial(function[(num_rows,)], num_warps=num_warps, num_stages=1, enable_fp_fusion=False)
