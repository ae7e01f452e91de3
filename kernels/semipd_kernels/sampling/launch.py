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
    cuts: bool,
) -> Iterator[Launch]:
    """`used`: slots, see `sampling.used_slots`. `draws`, `cuts`: whether any row is drawn, and whether any of
    them is cut by top-k or top-p."""
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    yield _adjust(logits, rows, used, edits, counts, work)
    if not draws:
        yield _pick(logits, rows, used, work, out)
        return
    if cuts:
        yield from _cut(logits, rows, used, work)
    source = (logits, work.adjusted, used, rows.temperature, rows.min_p)
    sums = (work.limits, work.tile_mass, work.tile_ties)
    sizes = (logits.stride(0), vocab_size, tiles)
    weigh = (*source, work.tile_best, *sums, *sizes)
    yield per_tile(kernel.weigh_kernel, len(rows), tiles, weigh, TILES=shape.padded(tiles))
    yield _pick(logits, rows, used, work, out)


def _adjust(
    logits: Tensor,
    rows: RowParams,
    used: Tensor,
    edits: tuple[Tensor, ...],
    counts: Tensor,
    work: SamplingMemory,
) -> Launch:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    penalties = (rows.repetition, rows.frequency, rows.presence)
    written, source = (work.tile_best, work.tile_token, work.limits), (logits, work.adjusted, counts, used)
    adjust = (*source, *penalties, rows.positions, *edits, *written, logits.stride(0), vocab_size, tiles)
    return per_tile(kernel.adjust_kernel, len(rows), tiles, adjust, EDITS=shape.EDITS)


def _cut(logits: Tensor, rows: RowParams, used: Tensor, work: SamplingMemory) -> Iterator[Launch]:
    """By top-k and top-p."""
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    source = (logits, work.adjusted, used, rows.temperature, rows.top_k, rows.top_p, work.tile_best)
    second = (work.count_2, work.mass_2, work.interval)
    sizes, constants = (logits.stride(0), vocab_size, tiles), {"TILES": shape.padded(tiles)}
    block = min(shape.TILE, shape.BLOCK)
    for number in (1, 2):
        narrow = (*source, work.count_1, work.mass_1, *second, *sizes)
        yield per_tile(
            filters.narrow_kernel, len(rows), tiles, narrow, BLOCK=block, ROUND=number, **constants
        )
    constants["CANDIDATES"] = work.candidates.shape[1]
    gather = (*source, *second, work.candidates, *sizes)
    yield per_tile(filters.gather_kernel, len(rows), tiles, gather, **constants)
    finish = (*source, *second, work.candidates, work.limits, *sizes)
    yield per_row(filters.finish_kernel, len(rows), finish, BLOCK=shape.BLOCK, **constants)


def _pick(logits: Tensor, rows: RowParams, used: Tensor, work: SamplingMemory, out: Tensor) -> Launch:
    vocab_size, tiles = logits.shape[1], shape.num_tiles(logits.shape[1])
    source = (logits, work.adjusted, used, rows.temperature, rows.min_p, rows.seeds, rows.positions)
    sums = (work.tile_best, work.tile_token, work.limits, work.tile_mass, work.tile_ties)
    pick = (*source, *sums, out, logits.stride(0), vocab_size, tiles)
    constants = {"TILE": shape.TILE, "TILES": shape.padded(tiles)}
    return per_row(kernel.pick_kernel, len(rows), pick, **constants)


OPTIONS: dict[str, Any] = {"num_warps": shape.NUM_WARPS, "num_stages": 1, "enable_fp_fusion": False}
"""No fused multiply-add in any kernel of sampling: the same expressions must give the same bits in all."""


def per_tile(function: Any, num_rows: int, tiles: int, args: tuple[Any, ...], **constants: Any) -> Launch:
    return Launch(function, num_rows * tiles, args, {"TILE": shape.TILE, **OPTIONS, **constants})


def per_row(function: Any, num_rows: int, args: tuple[Any, ...], **constants: Any) -> Launch:
    return Launch(function, num_rows, args, {**OPTIONS, **constants})
