"""Both lanes of a device, from its parts: what start-up does once memory, streams and weights are there."""

import torch

from semipd.checkpoints.weights import TORCH_DTYPES
from semipd.core.plan import blocks_for
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphTable, batch_buckets
from semipd.devices.cuda.lane.launch_loop import Deliver, LaunchLoop
from semipd.devices.cuda.lane.memory import LaneMemory, Shared
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.sampler.sampler import Sampler
from semipd.devices.cuda.split.streams import Lanes
from semipd.network.activations import Activations
from semipd.network.config import DTypeName, ModelConfig

GROUP_LAYERS = 4
"""Layers of a prefill launched at once: about 0.5 ms of launching at ten kernels a layer, well below a decode
step, and a few milliseconds of the device."""


def lane_size(
    lane: LaneName, settings: EngineSettings, config: ModelConfig, max_model_len: int, block_size: int
) -> LaneSize:
    """The decode lane also runs merged steps, and everything under the one-lane schedulers."""
    merged = max(settings.step_token_budget, settings.merge_tokens, settings.max_num_seqs)
    return LaneSize(
        max_rows=max(merged if lane == "decode" else settings.max_num_seqs, settings.prefill_chunk_tokens),
        max_num_seqs=settings.max_num_seqs,
        block_size=block_size,
        max_blocks_per_seq=blocks_for(max_model_len, block_size),
        max_tokens_per_seq=max_model_len,
        vocab_size=config.vocab_size,
        buckets=batch_buckets(settings.max_num_seqs),
        group_layers=GROUP_LAYERS,
    )


def reserve_memory(
    size: LaneSize, config: ModelConfig, dtype: DTypeName, sampler: Sampler, device: torch.device
) -> LaneMemory:
    like = torch.empty(0, dtype=TORCH_DTYPES[dtype], device=device)
    return LaneMemory.reserve(size, Activations.reserve(config, size.max_rows, like), sampler, device)


def graph_splits(lanes: Lanes, start: Split | None) -> list[Split]:
    """Under which decode runs, likeliest first: alone, the split it starts with, then from the middle."""
    middle = len(lanes.splits) / 2
    by_distance = sorted(range(len(lanes.splits)), key=lambda idx: abs(idx + 0.5 - middle))
    rest = [lanes.splits[idx] for idx in by_distance]
    first = [start] if start in lanes.splits and start is not None else []
    return list(dict.fromkeys([lanes.solo_decode, *first, *rest]))


def build_loop(
    shared: Shared,
    sizes: dict[LaneName, LaneSize],
    memories: dict[LaneName, LaneMemory],
    graphs: GraphTable,
    deliver: Deliver,
) -> LaunchLoop:
    """Graphs belong to decode; a prefill lane that is asked to decode does it without."""
    prefill = LaneExecutor("prefill", shared, sizes["prefill"], memories["prefill"], GraphTable([], []))
    decode = LaneExecutor("decode", shared, sizes["decode"], memories["decode"], graphs)
    num_units = shared.lanes.solo_decode.decode_units
    return LaunchLoop(prefill, decode, num_units, deliver)
