"""Both lanes of a device, from its parts: what start-up does once memory, streams and weights are there."""

from collections.abc import Mapping

import torch

from semipd.checkpoints.weights import TORCH_DTYPES
from semipd.core.plan import blocks_for
from semipd.core.settings import PREFILL_GRAPH_FILL, PREFILL_GRAPH_ROWS, EngineSettings
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphTable, batch_buckets
from semipd.devices.cuda.lane.launch_loop import Deliver, LaunchLoop
from semipd.devices.cuda.lane.memory import LaneMemory, Shared
from semipd.devices.cuda.rows.padded import PaddedRows
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.sampler.sampler import Sampler
from semipd.devices.cuda.split.streams import Lanes
from semipd.network.activations import Activations
from semipd.network.config import DTypeName, ModelConfig
from semipd.network.ops import Heads, Ops
from semipd.network.rows import ChunkPlan, PassSize

GROUP_LAYERS = 4
"""Layers of a prefill launched at once: about 0.5 ms of launching at ten kernels a layer, well below a decode
step, and a few milliseconds of the device."""


MOST_CHUNKS = 32
"""Of a captured pass: each needs a row of block tables."""

PADDED_UNITS = 64
"""SMs for which attention's tiles are chosen in these passes: about half of a large GPU. The tiles of a size
are the same under every split, since a prefill may move to another one between two groups of layers."""


def lane_size(
    lane: LaneName,
    settings: EngineSettings,
    config: ModelConfig,
    max_model_len: int,
    block_size: int,
    most_units: int,
) -> LaneSize:
    """The decode lane also runs merged steps, and everything under the one-lane schedulers."""
    merged = max(settings.step_token_budget, settings.merge_tokens, settings.max_num_seqs)
    passes = _chunk_passes(lane, settings)
    padded = max((size.num_rows for size in passes), default=0)
    most_others = merged if lane == "decode" else settings.max_num_seqs
    return LaneSize(
        max_rows=max(most_others, settings.prefill_chunk_tokens, padded),
        max_num_seqs=settings.max_num_seqs,
        block_size=block_size,
        max_blocks_per_seq=blocks_for(max_model_len, block_size),
        max_tokens_per_seq=max_model_len,
        vocab_size=config.vocab_size,
        buckets=batch_buckets(settings.max_num_seqs),
        group_layers=GROUP_LAYERS,
        most_units=most_units,
        chunk_passes=passes,
        context_tokens=max_model_len if settings.cuda.prefill_attention == "sdpa" else 0,
    )


def _chunk_passes(lane: LaneName, settings: EngineSettings) -> tuple[PassSize, ...]:
    """Sizes of captured passes over chunks, up to what a full chunk fills."""
    if lane == "decode" or not settings.cuda.prefill_graphs:
        return ()
    num_chunks = min(MOST_CHUNKS, settings.max_num_seqs)
    most_rows = settings.prefill_chunk_tokens / PREFILL_GRAPH_FILL
    return tuple(PassSize(rows, num_chunks) for rows in PREFILL_GRAPH_ROWS if rows <= most_rows)


def reserve_memory(
    size: LaneSize, config: ModelConfig, dtype: DTypeName, sampler: Sampler, ops: Ops, device: torch.device
) -> LaneMemory:
    like = torch.empty(0, dtype=TORCH_DTYPES[dtype], device=device)
    activations = Activations.reserve(config, size.max_rows, like)
    padded, context = _padded_rows(size, config, ops, like), _context(size, config, like)
    workspace = ops.decode_workspace(size.max_num_seqs, Heads.of(config, like), size.most_units)
    return LaneMemory.reserve(size, activations, sampler, device, padded, context, workspace)


def _context(size: LaneSize, config: ModelConfig, like: torch.Tensor) -> torch.Tensor | None:
    """Tokens in multiples of 16, so that every head begins aligned."""
    if not size.context_tokens:
        return None
    num_tokens = blocks_for(size.context_tokens, 16) * 16
    return like.new_empty(2, config.num_kv_heads, num_tokens, config.head_dim)


def _padded_rows(size: LaneSize, config: ModelConfig, ops: Ops, like: torch.Tensor) -> PaddedRows | None:
    if not size.chunk_passes:
        return None
    heads = Heads.of(config, like)

    def plan(query_lens: list[int], kv_lens: list[int], padded: PassSize) -> ChunkPlan:
        return ops.plan_chunks(query_lens, kv_lens, heads, PADDED_UNITS, padded)

    return PaddedRows(size.chunk_passes, plan, size.max_blocks_per_seq, like.device)


def graph_splits(lanes: Lanes, start: Split | None) -> list[Split]:
    """Under which decode runs, likeliest first: alone, the split it starts with, then from the middle."""
    middle = len(lanes.splits) / 2
    by_distance = sorted(range(len(lanes.splits)), key=lambda idx: abs(idx + 0.5 - middle))
    rest = [lanes.splits[idx] for idx in by_distance]
    first = [start] if start in lanes.splits and start is not None else []
    return list(dict.fromkeys([lanes.solo_decode, *first, *rest]))


def graph_tables(
    lanes: Lanes, sizes: Mapping[LaneName, LaneSize], num_layers: int
) -> dict[LaneName, GraphTable]:
    """With everything still to be captured."""
    prefill, splits = sizes["prefill"], graph_splits(lanes, None)
    # A device that is not divided computes prompts in merged steps, in the other lane.
    solo_first = [lanes.solo_prefill, *splits[1:]] if lanes.splits else []
    rows = [size.num_rows for size in prefill.chunk_passes]
    return {
        "prefill": GraphTable(solo_first, rows, range(0, num_layers, prefill.group_layers)),
        "decode": GraphTable(splits, sizes["decode"].buckets),
    }


def build_loop(
    shared: Shared,
    sizes: dict[LaneName, LaneSize],
    memories: dict[LaneName, LaneMemory],
    graphs: Mapping[LaneName, GraphTable],
    deliver: Deliver,
) -> LaunchLoop:
    """A prefill lane that is asked to decode does it without graphs."""
    prefill = LaneExecutor("prefill", shared, sizes["prefill"], memories["prefill"], graphs["prefill"])
    decode = LaneExecutor("decode", shared, sizes["decode"], memories["decode"], graphs["decode"])
    num_units = shared.lanes.solo_decode.decode_units
    return LaunchLoop(prefill, decode, num_units, deliver)
