"""Sizes that the launcher, its workspace and the ahead-of-time report share."""

TILE = 4096
"""Tokens per program of a per-tile kernel. fp32: 16 KiB, four 16-byte loads a thread of 8 warps; a vocabulary
of 151,936 is 38 programs a row.

Why not one program per row: one SM streams 20 GB/s from device memory and at most 110 from L2, so 0.6 MB take
6 to 30 us a pass, and a filtered draw makes up to 5 passes: 30 to 150 us, whatever the batch, while a decode
step of a small model on an H200 takes 1 to 4 ms. Tiles bring a pass near the cost of a launch, 2 us, for few
rows; 64 rows are 39 MB, which stay in L2: 10 us a pass on 48 SMs. Estimates, not measured."""
NUM_WARPS = 8
"""Distances and masses of a tile are in registers at once: with 4 warps too many for a thread."""
EDITS = 128
"""Edits looked at together; few rows have more."""

PIVOTS = 8
"""Distances below which the tokens of a tile are counted and weighed at once."""
CANDIDATES = 16384
"""Most tokens of a row that are gathered to find the end of top-k or top-p among them. Where more lie between
the last pivots, the row's own kernel reads all logits instead: right, and slower."""
BLOCK = 1024
"""Tokens that are counted and weighed at once: four a thread, so that three programs fit on an SM. At most
2048: their count and mass fit into one 64-bit sum."""


def num_tiles(vocab_size: int) -> int:
    return -(-vocab_size // TILE)


def padded(tiles: int) -> int:
    """A power of 2 that is at least `tiles`. Not below 64: one kernel serves every vocabulary, and the code
    for 32, which a warp adds up alone, is twice the size."""
    return max(64, 1 << (tiles - 1).bit_length())
