"""Tile, pipeline and occupancy by architecture, head dimension and SM count.

The kernel waits for memory, so what counts is bytes in flight. By Little's law an H200 needs
4.8 TB/s x 0.9 x 800 ns = 3.46 MB: 26 KiB per SM on 132 SMs, 53 on 64, 70 on 48, 84 on 40 and 106 on 32. An
A100 (2 TB/s x 0.9, 600 ns) needs 1.1 MB: 10 KiB per SM on 108, 26 on 40. None of this is measured yet.

A tile of keys and values is 32 KiB in every configuration. While a program computes on one tile, the other
buffers are in flight, so ctas_per_sm * (buffers - 1) tiles at worst and ctas_per_sm * buffers at best. All
of them are shared memory (beside 6 to 11 KiB of queries, weights and block ids, and 1 KiB that the driver
keeps per CTA), of which an SM has 164 KiB on sm_80 and 228 KiB on sm_90.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from semipd_kernels.tuned import lookup

TILE_BYTES = 32 * 1024
"""64 keys of 128 in 16 bits: 4 times the 16 keys of one tensor-core step for each of 4 warps, and few enough
that rounding a context up to tiles wastes little."""

MIN_TILE = 16
"""Keys of one tensor-core step."""

FEW_SMS = 40
"""From 48 SMs up there are bytes in flight to spare, see `choose`."""

SM_SHARED_KIB = {80: 164, 90: 228}
OTHER_SHARED_KIB = 11
"""Of one program beside its tiles; the last KiB for the driver comes on top. For groups of at most 16."""
MAX_CTAS = {4: 3, 8: 2}
"""By warps: what 64K registers allow when a thread needs up to 168, or 128 with 8 warps."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How one program reads.

    Attributes:
        tile: keys per tile for 16-bit types; 32-bit types take half as many, at least 16. Power of two.
        buffers: tiles of keys and values in shared memory.
        num_warps: of one program.
        ctas_per_sm: programs that fit one SM, for `choose_num_splits`.
    """

    tile: int
    buffers: int
    num_warps: int
    ctas_per_sm: int

    def tile_of(self, item_bytes: int) -> int:
        return self.tile if item_bytes == 2 else max(MIN_TILE, self.tile // 2)


def choose(*, arch: int, head_dim: int, num_sms: int) -> DecodeConfig:
    """The tuned configuration, or the reasoned one for so many SMs of compute capability `arch`.

    sm_90: 3 CTAs of 2 buffers have 96 to 192 KiB in flight and three programs to hide each other's softmax
    behind. On few SMs 2 CTAs of 3 buffers guarantee 128 KiB of the 84 to 106 that 40 to 32 SMs need; fewer
    SMs cannot saturate HBM with any shared memory.
    sm_80 and what is not known: 2 CTAs of 2 buffers, 64 to 128 KiB in flight of the 26 that 40 SMs need.
    """
    tuned = lookup("decode_attention", arch=arch, head_dim=head_dim, num_sms=num_sms)
    if tuned is not None:
        return DecodeConfig(**tuned)
    tile = tile_for(head_dim)
    if arch < 90:
        return DecodeConfig(tile, buffers=2, num_warps=4, ctas_per_sm=2)
    if num_sms <= FEW_SMS:
        return DecodeConfig(tile, buffers=3, num_warps=4, ctas_per_sm=2)
    return DecodeConfig(tile, buffers=2, num_warps=4, ctas_per_sm=3)


def tile_for(head_dim: int) -> int:
    """Keys whose 16-bit keys and values are TILE_BYTES."""
    return TILE_BYTES // (2 * 2 * head_dim)


def candidates(*, arch: int, head_dim: int) -> Iterator[DecodeConfig]:
    """What may be tuned: half, the same and twice the tile, in as many buffers as shared memory holds."""
    sm_kib = SM_SHARED_KIB[90 if arch >= 90 else 80]
    for tile in (tile_for(head_dim) // 2, tile_for(head_dim), tile_for(head_dim) * 2):
        tile_kib = tile * head_dim * 2 * 2 // 1024
        for buffers in (2, 3, 4, 6):
            for num_warps, most in MAX_CTAS.items():
                fitting = sm_kib // (buffers * tile_kib + OTHER_SHARED_KIB + 1)
                if fitting:
                    yield DecodeConfig(tile, buffers, num_warps, min(fitting, most))
