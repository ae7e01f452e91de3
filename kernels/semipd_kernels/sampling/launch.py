"""The sequence of launches of one sampling step. The grids depend on the shapes alone."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from semipd.sampling.parameters import RowParams
from semipd.sampling.stages import Stages
from semipd_kernels.launches import Launch
from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.filters import kernel as filters
from semipd_kernels.sampling.workspace import SamplingWorkspace

NO_SLOT = -1


def launches(
    logits: Tensor,
    rows: RowParams,
    stages: Stages,
    slots: Tensor,
    counts: Tensor,
    work: SamplingWorkspace,
    out: Tensor,
) -> Iterator[Launch]:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    used = _used_slots(slots, stages)
    yield from _adjust(logits, rows, stages, used, counts, work, out)
    if stages.drawn is None:
        return
    source = (logits, work.adjusted, used, rows.temperature)
    sizes = (logits.stride(0), vocab_size, tiles)
    if stages.filters:
        histogram = (work.coarse_count, work.coarse_mass)
        args = (*source, work.best, work.state, *histogram, *sizes)
        yield per_tile(filters.coarse_kernel, len(rows), tiles, args)
        select = (rows.top_k, rows.top_p, work.state, *histogram)
        yield per_row(filters.select_coarse_kernel, len(rows), select)
    for _ in range(stages.filters):
        for last in (False, True):
            yield from _refine(rows, work, source, sizes, last)
    sums = (work.tile_mass, work.tile_ties)
    weigh = (*source, rows.min_p, work.best, work.state, *sums, *sizes)
    yield per_tile(kernel.weigh_kernel, len(rows), tiles, weigh)
    seeds = (rows.seeds, rows.positions)
    pick = (*source, rows.min_p, *seeds, work.best, work.state, *sums, out, *sizes)
    yield per_row(kernel.pick_kernel, len(rows), pick, TILE=shape.TILE, TILES=shape.power_of_2(tiles))


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
) -> Iterator[Launch]:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    penalties = (rows.repetition, rows.frequency, rows.presence)
    edits, bests = _edits(stages, slots), (work.tile_best, work.tile_token)
    source = (logits, work.adjusted, counts, slots)
    sizes = (logits.stride(0), vocab_size, tiles)
    adjust = (*source, *penalties, rows.positions, *edits, *bests, *sizes)
    yield per_tile(kernel.adjust_kernel, len(rows), tiles, adjust, EDITS=shape.EDITS)
    histograms = (work.coarse_count, work.coarse_mass, work.fine_count, work.fine_mass)
    filters = (rows.temperature, rows.top_k, rows.top_p)
    best = (*bests, *filters, work.best, work.state, *histograms, out, vocab_size, tiles)
    yield per_row(kernel.best_kernel, len(rows), best, TILES=shape.power_of_2(tiles))


def _refine(
    rows: RowParams,
    work: SamplingWorkspace,
    source: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    last: bool,
) -> Iterator[Launch]:
    histogram = (work.fine_count, work.fine_mass)
    refine = (*source, work.best, work.state, *histogram, *sizes)
    yield per_tile(filters.refine_kernel, len(rows), sizes[2], refine, LAST=last)
    select = (rows.top_k, rows.top_p, work.state, work.coarse_mass, *histogram)
    yield per_row(filters.select_fine_kernel, len(rows), select, LAST=last)


OPTIONS: dict[str, Any] = {"num_warps": shape.NUM_WARPS, "num_stages": 1, "enable_fp_fusion": False}
"""No fused multiply-add in any kernel of sampling: the same expressions must give the same bits in all."""


def per_tile(function: Any, num_rows: int, tiles: int, args: tuple[Any, ...], **constants: Any) -> Launch:
    return Launch(function, num_rows * tiles, args, {"TILE": shape.TILE, **OPTIONS, **constants})


def per_row(function: Any, num_rows: int, args: tuple[Any, ...], **constants: Any) -> Launch:
    return Launch(function, num_rows, args, {**OPTIONS, **constants})
