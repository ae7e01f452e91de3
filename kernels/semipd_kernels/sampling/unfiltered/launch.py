"""Three launches; their grids depend on the number of rows, padding included, and the vocabulary."""

from torch import Tensor

from semipd_kernels.launches import Launch
from semipd_kernels.sampling import shape
from semipd_kernels.sampling.launch import per_row, per_tile
from semipd_kernels.sampling.unfiltered import check_rows, kernel


def launches(
    logits: Tensor,
    slots: Tensor,
    columns: Tensor,
    tokens: Tensor,
    tile_best: Tensor,
    tile_token: Tensor,
    tile_mass: Tensor,
) -> list[Launch]:
    (num_rows, vocab_size), num_slots = logits.shape, columns.shape[1]
    tiles = shape.num_tiles(vocab_size)
    check_rows(logits, slots, columns, tokens, len(tile_best), vocab_size)
    assert tile_best.shape[1] == tiles, (tile_best.shape, tiles)
    sizes = (logits.stride(0), vocab_size, tiles)
    best = (logits, slots, tile_best, tile_token, *sizes)
    weigh = (logits, slots, columns, tile_best, tile_mass, num_slots, *sizes)
    pick = (logits, slots, columns, tile_best, tile_token, tile_mass, tokens, num_slots, *sizes)
    constants = {"TILES": shape.padded(tiles)}
    return [
        per_tile(kernel.best_kernel, num_rows, tiles, best),
        per_tile(kernel.weigh_kernel, num_rows, tiles, weigh, **constants),
        per_row(kernel.pick_kernel, num_rows, pick, TILE=shape.TILE, **constants),
    ]
