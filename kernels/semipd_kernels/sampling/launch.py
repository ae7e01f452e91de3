"""The sequence of launches of one sampling step. The grids depend on the shapes alone."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from semipd.sampling.parameters import RowParams
from semipd_kernels.launches import Launch
from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.filters import kernel as filters
from semipd_kernels.sampling.workspace import SamplingMemory


def launches(
    logits: Tensor,
    rows: RowParams,
    used: Tensor,
    edits: tuple[Tensor, ...],
    counts: Tensor,
    work: SamplingMemory,
    out: Tensor,
    draws: bool,
    num_filters: int,
) -> Iterator[Launch]:
    """`used`: slots, see `sampling.used_slots`. `num_filters`: see Stages.filters."""
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    yield from _adjust(logits, rows, used, edits, counts, work, out)
    if not draws:
        return
    source = (logits, work.adjusted, used, rows.temperature)
    sizes = (logits.stride(0), vocab_size, tiles)
    if num_filters:
        histogram = (work.coarse_count, work.coarse_mass)
        args = (*source, work.best, work.state, *histogram, *sizes)
        yield per_tile(filters.coarse_kernel, len(rows), tiles, args)
        select = (rows.top_k, rows.top_p, work.state, *histogram)
        yield per_row(filters.select_coarse_kernel, len(rows), select)
    for _ in range(num_filters):
        for last in (False, True):
            yield from _refine(rows, work, source, sizes, last)
    sums = (work.tile_mass, work.tile_ties)
    weigh = (*source, rows.min_p, work.best, work.state, *sums, *sizes)
    yield per_tile(kernel.weigh_kernel, len(rows), tiles, weigh)
    seeds = (rows.seeds, rows.positions)
    pick = (*source, rows.min_p, *seeds, work.best, work.state, *sums, out, *sizes)
    yield per_row(kernel.pick_kernel, len(rows), pick, TILE=shape.TILE, TILES=shape.power_of_2(tiles))


def _adjust(
    logits: Tensor,
    rows: RowParams,
    used: Tensor,
    edits: tuple[Tensor, ...],
    counts: Tensor,
    work: SamplingMemory,
    out: Tensor,
) -> Iterator[Launch]:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    penalties = (rows.repetition, rows.frequency, rows.presence)
    bests, source = (work.tile_best, work.tile_token), (logits, work.adjusted, counts, used)
    sizes = (logits.stride(0), vocab_size, tiles)
    adjust = (*source, *penalties, rows.positions, *edits, *bests, *sizes)
    yield per_tile(kernel.adjust_kernel, len(rows), tiles, adjust, EDITS=shape.EDITS)
    histograms = (work.coarse_count, work.coarse_mass, work.fine_count, work.fine_mass)
    filters = (rows.temperature, rows.top_k, rows.top_p)
    best = (*bests, *filters, work.best, work.state, *histograms, out, vocab_size, tiles)
    yield per_row(kernel.best_kernel, len(rows), best, TILES=shape.power_of_2(tiles))


def _refine(
    rows: RowParams,
    work: SamplingMemory,
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
