"""The sequence of launches of one sampling step. The grids depend on the shapes alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from semipd_kernels.sampling import kernel, shape
from semipd_kernels.sampling.rows import SamplingRows, SamplingUses
from semipd_kernels.sampling.workspace import SamplingWorkspace


def launch(
    logits: Tensor,
    rows: SamplingRows,
    counts: Tensor,
    work: SamplingWorkspace,
    uses: SamplingUses,
    out: Tensor,
) -> None:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    _adjust(logits, rows, counts, work, out, uses.draws)
    if not uses.draws:
        return
    source = (logits, work.adjusted, rows.slots, rows.temperature)
    sizes = (logits.stride(0), vocab_size, tiles)
    if uses.filters:
        histogram = (work.coarse_count, work.coarse_mass)
        _per_tile(kernel.coarse_kernel, len(rows), tiles)(*source, work.best, work.state, *histogram, *sizes)
        select = _per_row(kernel.select_coarse_kernel, len(rows), shape.NUM_WARPS)
        select(rows.top_k, rows.top_p, work.state, *histogram)
    for _ in range(uses.filters):
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


def launch_advance(tokens: Tensor, rows: SamplingRows, counts: Tensor) -> None:
    kernel.advance_kernel[(-(-len(rows) // shape.ADVANCE_ROWS),)](
        tokens,
        rows.slots,
        rows.positions,
        counts,
        counts.shape[1],
        len(rows),
        ROWS=shape.ADVANCE_ROWS,
        num_warps=shape.ADVANCE_ROWS // 32,
        num_stages=1,
        enable_fp_fusion=False,
    )


def _adjust(
    logits: Tensor, rows: SamplingRows, counts: Tensor, work: SamplingWorkspace, out: Tensor, draws: bool
) -> None:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    penalties = (rows.repetition, rows.frequency, rows.presence)
    edits = (rows.edit_starts, rows.edit_tokens, rows.edit_bias, rows.edit_until)
    bests = (work.tile_best, work.tile_token)
    _per_tile(kernel.adjust_kernel, len(rows), tiles, EDITS=shape.EDITS)(
        logits,
        work.adjusted,
        counts,
        rows.slots,
        *penalties,
        rows.positions,
        *edits,
        *bests,
        logits.stride(0),
        vocab_size,
        tiles,
    )
    histograms = (work.coarse_count, work.coarse_mass, work.fine_count, work.fine_mass)
    filters = (rows.temperature, rows.top_k, rows.top_p)
    best = _per_row(kernel.best_kernel, len(rows), shape.NUM_WARPS)
    constants = {"TILES": shape.power_of_2(tiles), "DRAWS": draws}
    best(*bests, *filters, work.best, work.state, *histograms, out, vocab_size, tiles, **constants)


def _refine(
    rows: SamplingRows,
    work: SamplingWorkspace,
    source: tuple[Tensor, ...],
    sizes: tuple[int, int, int],
    last: bool,
) -> None:
    histogram = (work.fine_count, work.fine_mass)
    refine = _per_tile(kernel.refine_kernel, len(rows), sizes[2], LAST=last)
    refine(*source, work.best, work.state, *histogram, *sizes)
    select = _per_row(kernel.select_fine_kernel, len(rows), shape.NUM_WARPS)
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
