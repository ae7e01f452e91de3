"""Start-up of the CUDA device, in the order that its parts need each other:

CUDA ─▶ libraries ─▶ weights ─▶ lanes ─▶ working memory ─▶ kernels ─▶ a trial graph ─▶ KV pool
     ─▶ launch thread ─▶ graphs
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from semipd.checkpoints.progress import Report
from semipd.checkpoints.weights import TORCH_DTYPES, weight_views
from semipd.core.plan import StepPlan, StepResult
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName, Split
from semipd.devices.contract import DeviceInfo, LaneFailed
from semipd.devices.cuda.driver.diagnosis import diagnose
from semipd.devices.cuda.driver.environment import environment_notes
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, leave_matmuls
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphKey, GraphTable
from semipd.devices.cuda.lane.launch_loop import LaunchLoop
from semipd.devices.cuda.lane.launch_thread import LaunchThread, Stage
from semipd.devices.cuda.lane.memory import LaneMemory, Shared
from semipd.devices.cuda.lane.warm_up import WarmUpSize, trial_tokens, warm_up_plans
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.split.streams import Lanes
from semipd.devices.cuda.start.assembly import (
    build_loop,
    graph_splits,
    graph_tables,
    lane_size,
    reserve_memory,
)
from semipd.devices.cuda.start.compiling import compile_beforehand, kernel_set
from semipd.devices.cuda.start.memory_table import DEFAULT_KV_FRACTION, GpuMemoryDemand
from semipd.devices.cuda.start.model import ModelSource
from semipd.devices.cuda.start.nvml import Nvml
from semipd.devices.cuda.start.platform import Platform
from semipd.devices.cuda.start.transients import transients_bytes
from semipd.network.config import ITEM_BYTES
from semipd.network.network import Network
from semipd.steps.failures import check_trial
from semipd.steps.sizing import num_kv_blocks

RESERVE_BYTES = 2**30
"""Stays free: cuBLAS workspaces of every stream, kernels loaded late, the allocator's slack. Estimate."""

CAPTURE_AT_START_S = 20.0
"""Graphs that do not fit into this time, compiling not counted, are captured in the pauses of serving."""

_LANES_S, _COMPILE_S, _CAPTURE_S = 120.0, 900.0, 300.0
"""Time limits. Compiling every kernel of a pass takes half a minute of processor time, on a busy or slow host
many times that; a capture may compile too, for a batch size that nobody has warmed up."""

_NAMES: tuple[LaneName, ...] = ("prefill", "decode")

log = logging.getLogger("semipd.devices.cuda")


@dataclass(frozen=True, slots=True)
class Opened:
    info: DeviceInfo
    lanes: Lanes
    graphs: dict[LaneName, GraphTable]
    thread: LaunchThread
    nvml: Nvml


class Opening:
    """`stack` receives what has to be closed, so that a failure half-way leaves nothing behind."""

    def __init__(
        self,
        settings: EngineSettings,
        report: Report,
        platform: Platform,
        source: ModelSource,
        stack: ExitStack,
    ) -> None:
        self._settings = settings
        self._report = report
        self._platform = platform
        self._source = source
        self._stack = stack
        self._model = source.read(settings)

    def run(self) -> Opened:
        """Raises SemipdError: of reading the checkpoint, `insufficient_memory`; CudaError."""
        self._warm_libraries()
        weights = self._load()
        self._lanes = self._divide()
        self._aim_matmuls = self._matmul_sms()
        self._events = EventPool(self._platform.driver)
        self._stack.callback(self._events.close)
        self._sizes = {name: self._size(name) for name in _NAMES}
        self._memories = {name: self._reserve(name) for name in _NAMES}
        self._platform.staging.reserve(self._sizes.values())
        self._compile_kernels()
        demand = self._demand(self._all_graphs_bytes(weights))
        num_blocks = num_kv_blocks(demand)
        log.info("device memory:\n%s", demand.table(num_blocks))
        graphs = graph_tables(self._lanes, self._sizes, self._model.config.num_layers)
        thread = self._start(self._shared(weights, num_blocks), graphs, num_blocks)
        nvml = Nvml.open(self._platform.uuid)
        self._stack.callback(nvml.close)
        return Opened(self._info(num_blocks, demand.rows(num_blocks)), self._lanes, graphs, thread, nvml)

    def _compile_kernels(self) -> None:
        self._report("compiling kernels", _COMPILE_S)
        if arch := self._platform.kernel_arch:
            buckets = self._sizes["decode"].buckets
            kernels = kernel_set(self._model, self._lanes, buckets, self._settings.cuda, arch)
            compile_beforehand(kernels, self._report, _COMPILE_S)

    def _warm_libraries(self) -> None:
        """cuBLAS makes its handle in the context that is current: it must be the primary one."""
        dtype = TORCH_DTYPES[self._model.dtype]
        square = torch.ones(256, 256, dtype=dtype, device=self._platform.device)
        torch.mm(square, square)
        self._platform.synchronize()

    def _load(self) -> dict[str, Tensor]:
        layout = self._model.layout
        buffer = torch.empty(layout.total_bytes, dtype=torch.uint8, device=self._platform.device)
        self._source.load(self._model, buffer, self._report)
        self._platform.synchronize()
        return weight_views(layout, buffer)

    def _divide(self) -> Lanes:
        self._report("dividing the SMs", _LANES_S)
        lanes = Lanes.open(self._platform.driver, environment_notes(os.environ))
        self._stack.callback(lanes.close)
        found = lanes.capability
        for note in found.notes:
            log.warning("%s", note)
        if found.can_partition:
            log.info("%s: splits %s", found.device_name, ", ".join(map(str, found.splits)))
        else:
            log.warning("%s is not divided: %s", found.device_name, found.reason)
            if self._settings.cuda.prefill_graphs:
                log.warning("cuda.prefill_graphs has no effect: prompts are computed in merged steps")
        return lanes

    def _matmul_sms(self) -> AimMatmuls:
        if not self._settings.cuda.sm_carveout:
            return leave_matmuls
        return self._platform.aim_matmuls_of(self._lanes.capability.num_sms)

    def _size(self, lane: LaneName) -> LaneSize:
        return lane_size(
            lane,
            self._settings,
            self._model.config,
            self._model.max_model_len,
            self._model.kv_layout.block_size,
            self._lanes.capability.num_sms,
        )

    def _reserve(self, lane: LaneName) -> LaneMemory:
        model = self._model
        size, platform = self._sizes[lane], self._platform
        sampler = platform.sampler_of(size)
        ops = platform.ops_of(model, self._settings.cuda)
        return reserve_memory(size, model.config, model.dtype, sampler, ops, platform.device)

    def _shared(self, weights: dict[str, Tensor], num_blocks: int) -> Shared:
        """With a KV pool of its own."""
        model, platform = self._model, self._platform
        # Zeros: whatever the memory held before never shows, not even in a benchmark of made-up contexts.
        pool = torch.zeros(
            model.kv_layout.pool_shape(num_blocks), dtype=TORCH_DTYPES[model.dtype], device=platform.device
        )
        # Zeroed buffers and pool were made on the default stream, which no lane waits for.
        platform.synchronize()
        return Shared(
            platform.driver,
            self._lanes,
            platform.submit,
            Network(model.config, weights, pool, platform.ops_of(model, self._settings.cuda)),
            platform.staging,
            self._events,
            platform.device,
            self._aim_matmuls,
        )

    def _all_graphs_bytes(self, weights: dict[str, Tensor]) -> int:
        decode_bytes = self._trial_graph_bytes(weights) * len(graph_splits(self._lanes, None))
        return decode_bytes + self._chunk_graphs_bytes(weights)

    def _chunk_graphs_bytes(self, weights: dict[str, Tensor]) -> int:
        """Judged by the first graph of the largest pass: they work in the lane's own memory, and each brings
        nothing but its kernels' arguments."""
        table = graph_tables(self._lanes, self._sizes, self._model.config.num_layers)["prefill"]
        key, num_graphs = table.next_missing(), table.num_missing
        if key is None:
            return 0
        size = self._sizes["prefill"]
        lane = LaneExecutor("prefill", self._shared(weights, 2), size, self._memories["prefill"], table)
        used = self._captured_bytes(lane, key)
        self._destroy(table)
        return used * num_graphs

    def _captured_bytes(self, lane: LaneExecutor, key: GraphKey) -> int:
        """What one more graph keeps. At both looks at the free memory the allocator's cache is empty: what a
        warm-up leaves in it is no graph's."""
        driver = self._platform.driver
        lane.warm_up(key)
        driver.release_cached()
        before = driver.memory_bytes()[0]
        lane.capture(key)
        driver.release_cached()
        return max(0, before - driver.memory_bytes()[0])

    def _trial_graph_bytes(self, weights: dict[str, Tensor]) -> int:
        """Of one split's graphs, judged by its two largest: the first brings the scratch memory that all of
        the split share, the second what each further one adds."""
        size = self._sizes["decode"]
        splits = [self._lanes.solo_decode]
        table = GraphTable(splits, size.buckets)
        lane = LaneExecutor("decode", self._shared(weights, 2), size, self._memories["decode"], table)
        used = [
            self._captured_bytes(lane, GraphKey(splits[0], bucket))
            for bucket in [*reversed(size.buckets)][:2]
        ]
        self._destroy(table)
        return used[0] + (len(size.buckets) - 1) * used[-1]

    def _demand(self, graphs_bytes: int) -> GpuMemoryDemand:
        model, settings = self._model, self._settings
        free_bytes, total_bytes = self._platform.driver.memory_bytes()
        return GpuMemoryDemand(
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            weights_bytes=model.layout.total_bytes,
            buffers_bytes=sum(memory.num_bytes for memory in self._memories.values()),
            graphs_bytes=graphs_bytes,
            transients_bytes=transients_bytes(self._sizes.values(), model.config, model.dtype),
            reserve_bytes=RESERVE_BYTES + self._attended_bytes(),
            block_size=model.kv_layout.block_size,
            block_bytes=model.kv_layout.block_bytes(model.dtype),
            kv_bytes=settings.kv_bytes,
            kv_fraction=settings.kv_fraction or DEFAULT_KV_FRACTION,
            max_num_blocks=settings.max_num_blocks,
            max_model_len=model.max_model_len,
        )

    def _attended_bytes(self) -> int:
        """What torch's attention returns: the allocator keeps it for every stream that computes chunks."""
        if self._settings.cuda.prefill_attention == "triton":
            return 0
        model, num_streams = self._model, len(self._lanes.splits) + 1
        row_bytes = model.config.q_width * ITEM_BYTES[model.dtype]
        return num_streams * row_bytes * sum(size.max_rows for size in self._sizes.values())

    def _start(self, shared: Shared, graphs: dict[LaneName, GraphTable], num_blocks: int) -> LaunchThread:
        """From here on only the launch thread launches: torch keeps library handles per thread."""
        driver = self._platform.driver
        self._stack.callback(lambda: self._destroy(*graphs.values()))
        thread = LaunchThread(driver.bind_thread, lambda error: self._diagnose(error, loop))
        loop = build_loop(shared, self._sizes, self._memories, graphs, thread.deliver)
        self._stack.callback(thread.stop)
        thread.start(loop, self._stages(loop, num_blocks), self._report)
        return thread

    def _stages(self, loop: LaunchLoop, num_blocks: int) -> list[Stage]:
        """In the launch thread: warm up both lanes under every split, capture the likeliest graphs. What a
        split is the first to need is compiled in its stage; the time for graphs begins afterwards."""
        places = [(name, split) for name in loop.lanes for split in (*self._lanes.splits, self._solo(name))]
        tokens, steps = trial_tokens(self._model.config.vocab_size), list[tuple[StepPlan, StepResult]]()

        def warm_up(lane: LaneName, split: Split) -> None:
            steps.extend(self._warm_up(loop, lane, split, num_blocks, tokens))

        stages = [
            Stage(f"warming up: stream {number} of {len(places)}", _COMPILE_S, partial(warm_up, *place))
            for number, place in enumerate(places, 1)
        ]
        return [*stages, Stage("capturing graphs", _CAPTURE_S, lambda: self._capture(loop, steps))]

    def _solo(self, lane: LaneName) -> Split:
        return self._lanes.solo_prefill if lane == "prefill" else self._lanes.solo_decode

    def _warm_up(
        self, loop: LaunchLoop, lane: LaneName, split: Split, num_blocks: int, tokens: Iterator[int]
    ) -> Iterator[tuple[StepPlan, StepResult]]:
        sizes = self._sizes[lane]
        size = WarmUpSize(num_blocks, sizes.block_size, sizes.max_rows, self._model.max_model_len)
        with_prompt_logprobs = split == self._solo(lane)
        for plan in warm_up_plans(split, size, tokens, with_prompt_logprobs=with_prompt_logprobs):
            yield plan, loop.run_alone(lane, plan)
        loop.lanes[lane].rebuild([])

    def _capture(self, loop: LaunchLoop, steps: Sequence[tuple[StepPlan, StepResult]]) -> None:
        """`steps`: of the warm-up."""
        check_trial(steps, self._model.dtype)
        self._platform.driver.release_cached()
        lanes, more = loop.lanes.values(), True
        for lane in lanes:
            lane.graphs.forget_requests()
        while more and sum(lane.capturing_s for lane in lanes) <= CAPTURE_AT_START_S:
            more = loop.capture_next()
        for lane in lanes:
            log.info(
                "%d %s graphs captured, %d missing", len(lane.graphs), lane.name, lane.graphs.num_missing
            )

    def _destroy(self, *tables: GraphTable) -> None:
        """None of their graphs may run meanwhile."""
        self._platform.synchronize()
        for graph in (graph for table in tables for graph in table.take_all()):
            self._platform.driver.destroy_graph(graph)

    def _diagnose(self, error: BaseException, loop: LaunchLoop) -> LaneFailed:
        log.error("launch thread failed", exc_info=error)

        def state() -> str:
            free, total = self._platform.driver.memory_bytes()
            memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free."
            return f"{loop.describe()} {memory}"

        return diagnose(error, state)

    def _info(self, num_blocks: int, memory: dict[str, int]) -> DeviceInfo:
        lanes, model = self._lanes, self._model
        found = lanes.capability
        return DeviceInfo(
            kind="cuda",
            name=f"cuda: {found.device_name}, {found.num_sms} SMs",
            unit="SM",
            num_units=found.num_sms,
            splits=lanes.splits,
            solo_prefill=lanes.solo_prefill,
            solo_decode=lanes.solo_decode,
            num_blocks=num_blocks,
            block_size=model.kv_layout.block_size,
            vocab_size=model.config.vocab_size,
            max_model_len=model.max_model_len,
            dtype=model.dtype,
            memory=memory,
            prefill_moves=True,
        )
