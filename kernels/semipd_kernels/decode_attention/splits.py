"""How many splits a batch gets: pure arithmetic, made once per captured graph."""

from semipd_kernels.decode_attention.configs import MAX_CTAS

ITEM_OVERHEAD_TILES = 1
"""Time of a split beside its tiles, in tiles: filling the pipeline, writing the partial result, counting it.
One tile in flight takes about as long as the latency it hides."""

MERGE_TILES = 1
"""Time of the merge by the last split, in tiles: an atomic operation with its fences and reading the partial
results are three or four waits of up to 1 us (a tile takes 3 us when 132 SMs read 10.9 GB/s per program)."""

MAX_WAVES = 4
"""More splits than fill the device so many times only add overhead."""


def choose_num_splits(
    batch: int, num_kv_heads: int, max_context: int, num_sms: int, *, tile: int = 64, ctas_per_sm: int = 2
) -> int:
    """Splits per sequence, on average. Fixed for a captured graph.

    `decode_attention` makes batch * num_splits work items per KV head, and on the device gives the items to
    the sequences in proportion to their lengths.

    With S = num_sms * ctas_per_sm programs at a time and T = ceil(max_context / tile) tiles, it is the
    smallest s <= T that minimises the modelled time

        ceil(batch * num_kv_heads * s / S) * (ceil(T / (s - u)) + ITEM_OVERHEAD_TILES)

    waves of programs, times the longest program; plus MERGE_TILES if s > 1. u is 1/2 for batch > 1, else 0:
    rounding up to whole splits costs every sequence of a ragged batch half an item on average, and one alone
    nothing. s = 1 is thereby seen as what it is in a ragged batch, the one choice that cannot even out
    lengths.

    Args:
        batch: rows of the captured batch, padded rows included; at least 1.
        num_kv_heads: of this device.
        max_context: tokens; the longest context of the batch, or the bound for which a graph is captured.
        num_sms: of the lane.
        tile, ctas_per_sm: of the configuration, see configs.choose.
    """
    programs = num_sms * ctas_per_sm
    rows = batch * num_kv_heads
    tiles = max(1, -(-max_context // tile))
    most = min(tiles, max(2, -(-MAX_WAVES * programs // rows)))
    half = int(batch > 1)

    def time(splits: int) -> int:
        waves = -(-rows * splits // programs)
        longest = -(-2 * tiles // (2 * splits - half))
        return waves * (longest + ITEM_OVERHEAD_TILES) + (MERGE_TILES if splits > 1 else 0)

    return min(range(1, most + 1), key=time)


def most_items(batch: int, num_kv_heads: int, num_sms: int) -> int:
    """`choose_num_splits` makes no more items of at most `batch` rows, on at most so many SMs."""
    programs = num_sms * max(MAX_CTAS.values())
    return max(2 * batch, -(-MAX_WAVES * programs // num_kv_heads) + batch)
