"""What a lane is built for: its greatest numbers."""

from dataclasses import dataclass

from semipd.network.rows import PassSize


@dataclass(frozen=True, slots=True)
class LaneSize:
    """Attributes:
    max_rows: most rows of one pass. max_num_seqs: most residents.
    block_size: tokens per KV block.
    buckets: batch sizes of decode passes, rising; the last holds every resident.
    group_layers: layers of a piece of a step with chunks.
    most_units: of the device: the lane may have all of it.
    context_tokens: longest context that attention copies out of the pool; 0: it reads the pool.
    chunk_passes: sizes of captured passes over chunks, by rising rows; none: nothing of chunks is captured.
    """

    max_rows: int
    max_num_seqs: int
    block_size: int
    max_blocks_per_seq: int
    max_tokens_per_seq: int
    vocab_size: int
    buckets: tuple[int, ...]
    group_layers: int
    most_units: int
    context_tokens: int = 0
    chunk_passes: tuple[PassSize, ...] = ()
