"""Compiles the kernels that an engine will launch before it launches them: many at once, and without a GPU.

Triton compiles at a kernel's first launch, in the thread that launches: for an 8B model about half a minute
of one core, in which nothing is served. Here processes run two layers of the network on CPU tensors under a
driver of Triton that compiles as ever and launches nothing. What they compile lies in Triton's cache
(TRITON_CACHE_DIR), where a real launch finds it: the cache knows a kernel by its source, its arguments'
types, its constants and the compute capability.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from semipd.checkpoints.progress import Report
from semipd.core.settings import CudaSettings, PrefillAttention
from semipd.devices.cuda.split.green_contexts import decode_group_counts
from semipd.devices.cuda.split.streams import Lanes
from semipd.devices.cuda.start.model import DeviceModel
from semipd.network.config import DTypeName, ModelConfig

log = logging.getLogger("semipd.devices.cuda")

MOST_PROCESSES = 14
"""More than there are jobs would only import torch."""

PROMPT_ROWS = (64, 2048)
"""Of the narrow and of the wide tiles of prefill attention."""

NUM_LAYERS = 2
"""The first norm of a pass is another kernel than the later ones."""

_SHARED_MEMORY_BYTES = 232_448
_THREADS = 1024

Progress = Callable[[int, int], None]
"""(jobs that are done, all jobs)."""


@dataclass(frozen=True, slots=True)
class KernelSet:
    """What an engine launches.

    Attributes:
        arch: compute capability, 90 for Hopper.
        lane_sms: SM counts of all lanes, the whole device included.
        buckets: batch sizes of decode steps.
        max_model_len, block_size: in tokens.
        dependent: launches are programmatic dependent ones.
        prefill_attention: see CudaSettings; for `sdpa` our part of it is the copy of a context.
        tma: decode attention loads by TMA.
    """

    config: ModelConfig
    dtype: DTypeName
    arch: int
    lane_sms: tuple[int, ...]
    buckets: tuple[int, ...]
    max_model_len: int
    block_size: int
    dependent: bool = False
    prefill_attention: PrefillAttention = "triton"
    tma: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """`num_sms`: of the lane; 0: sampling, which depends on no lane."""

    kind: Literal["decode", "prefill", "sampling"]
    num_sms: int = 0


def lane_sizes(num_sms: int, group_sms: int = 8) -> list[int]:
    """SM counts of all lanes of a GPU that the driver divides into groups of so many, and the whole GPU."""
    groups, rest = divmod(num_sms, group_sms)
    decode = [group_sms * count for count in decode_group_counts(groups, rest > 0)]
    return sorted({*decode, *(num_sms - sms for sms in decode), num_sms})


def jobs(kernels: KernelSet) -> list[Job]:
    """Longest first."""
    kinds: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    lanes = [Job(kind, sms) for kind in kinds for sms in kernels.lane_sms]
    return [Job("sampling"), *lanes]


def compile_all(
    kernels: KernelSet, processes: int = 0, progress: Progress = lambda done, total: None
) -> None:
    """Fill the cache; jobs that have been done for it before are left out. Raises what compiling raises.
    `processes`: at once; 0: as many as there are cores, within reason."""
    todo = [job for job in jobs(kernels) if not _stamp(kernels, job).exists()]
    if not todo:
        return
    processes = min(processes or os.cpu_count() or 1, MOST_PROCESSES, len(todo))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(compile_job, kernels, job): job for job in todo}
        for done, future in enumerate(as_completed(running), start=1):
            future.result()
            _stamp(kernels, running[future]).touch()
            progress(done, len(todo))


def kernel_set(
    model: DeviceModel, lanes: Lanes, buckets: tuple[int, ...], settings: CudaSettings, arch: int
) -> KernelSet:
    """Of an engine with these lanes."""
    units = {unit for split in lanes.splits for unit in (split.prefill_units, split.decode_units)}
    return KernelSet(
        model.config,
        model.dtype,
        arch,
        tuple(sorted({*units, lanes.capability.num_sms})),
        buckets,
        model.max_model_len,
        model.kv_layout.block_size,
        settings.dependent_launch,
        settings.prefill_attention,
        settings.tma_loads,
    )


def compile_beforehand(kernels: KernelSet, report: Report, limit_s: float) -> None:
    """At an engine's start. What cannot be compiled now is compiled, or fails, when it is launched first."""

    def progress(done: int, total: int) -> None:
        report(f"compiling kernels: {done} of {total}", limit_s)

    try:
        compile_all(kernels, progress=progress)
    except Exception:  # of the compiler, of its processes, of the cache's folder
        log.warning("kernels could not be compiled beforehand", exc_info=True)


def _stamp(kernels: KernelSet, job: Job) -> Path:
    """A file in the cache that says: done. With a kernel's source it changes its name."""
    import triton

    told = (triton.__version__, job, replace(kernels, lane_sms=()), _sources())
    folder = Path(triton.knobs.cache.dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"semipd-{sha256(repr(told).encode()).hexdigest()[:32]}"


@cache
def _sources() -> str:
    """A digest of the kernels' sources."""
    import semipd_kernels

    digest = sha256()
    for source in sorted(Path(str(semipd_kernels.__file__)).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def compile_job(kernels: KernelSet, job: Job) -> list[str]:
    """In this process, whose Triton is of no use for a GPU afterwards. Returns the names of what it had to
    compile; what the cache held is not among them."""
    compiled = _pretend(kernels.arch)
    if job.kind == "sampling":
        _sample(kernels.config.vocab_size)
    else:
        _pass_of(kernels, job.kind, job.num_sms)
    return compiled


def _pretend(arch: int) -> list[str]:
    """Gives Triton a driver that knows a GPU and has none. The list grows with what is compiled."""
    from semipd_kernels import dispatch
    from semipd_kernels.decode_attention import launch
    from semipd_kernels.launches import forget_launches
    from triton import knobs
    from triton.runtime import driver

    compiled = list[str]()

    def note(src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        if not cache_hit:
            compiled.append(src.name)

    driver.set_active(_CompileOnly(arch))
    knobs.compilation.listener = note
    dispatch.INTERPRETED = True  # CPU tensors take the kernels too
    launch.INTERPRETED_ARCH = arch
    forget_launches()
    return compiled


class _CompileOnly:
    """See triton.runtime.driver."""

    def __init__(self, arch: int) -> None:
        self._arch = arch
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": _SHARED_MEMORY_BYTES},
            load_binary=lambda name, kernel, shared, device: (1, 1, 0, 0, _THREADS),
        )

    def launcher_cls(self, src: object, metadata: object) -> Callable[..., None]:
        return lambda *args: None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)


def _pass_of(kernels: KernelSet, kind: Literal["decode", "prefill"], num_sms: int) -> None:
    import torch

    from semipd.checkpoints.layout import plan_weights
    from semipd.checkpoints.weights import TORCH_DTYPES, weight_views
    from semipd.network.activations import Activations
    from semipd.network.kv_layout import KvLayout
    from semipd.network.network import Network
    from semipd.network.ops import Heads

    config, dtype = replace(kernels.config, num_layers=NUM_LAYERS), TORCH_DTYPES[kernels.dtype]
    layout = plan_weights(config, kernels.dtype)
    weights = weight_views(layout, torch.empty(layout.total_bytes, dtype=torch.uint8))
    pool = torch.empty(KvLayout.of(config, kernels.block_size).pool_shape(3), dtype=dtype)
    ops, decodes = _launching_ops(kernels), kind == "decode"
    network = Network(config, weights, pool, ops)
    sizes = kernels.buckets if decodes else PROMPT_ROWS
    workspace = ops.decode_workspace(max(sizes), Heads.of(config, pool), num_sms) if decodes else ()
    memory = Activations.reserve(config, max(sizes), pool)
    for size in sizes:
        rows = _decode(kernels, size, workspace) if decodes else _prompt(network, size, num_sms, kernels)
        activations = memory.first(size)
        network.embed(rows, activations)
        network.layers(rows, activations, range(NUM_LAYERS), num_sms)
        network.finish(activations, None)


def _launching_ops(kernels: KernelSet) -> Any:
    """What is not Triton's is left out: products, and torch's attention."""
    from semipd_kernels.gather_kv import gather_kv

    from semipd.checkpoints.weights import TORCH_DTYPES
    from semipd.devices.cuda.forward.kernel_ops import KernelOps
    from semipd.devices.cuda.forward.sdpa_ops import SdpaOps

    class Ops(KernelOps):
        def linear(self, x: Any, weight: Any, bias: Any, out: Any) -> Any:
            return out

    class CopyingOps(Ops, SdpaOps):
        def prefill_attention(
            self, qkv: Any, heads: Any, layer_kv: Any, chunks: Any, num_units: int, out: Any
        ) -> None:
            room = chunks.tables.shape[1] * layer_kv.shape[3]
            gather_kv(layer_kv, chunks.tables[0], min(chunks.host_kv_lens[0], room), chunks.context)

    ops = CopyingOps if kernels.prefill_attention == "sdpa" else Ops
    dtype = TORCH_DTYPES[kernels.dtype]
    return ops(dtype, kernels.arch, dependent=kernels.dependent, tma=kernels.tma)


def _decode(kernels: KernelSet, batch: int, workspace: Any) -> Any:
    import torch

    from semipd.core.plan import blocks_for
    from semipd.devices.cuda.rows.layout import decode_rows
    from semipd.devices.cuda.rows.slots import SlotState

    blocks = blocks_for(kernels.max_model_len, kernels.block_size)
    state = SlotState(batch + 1, blocks, kernels.block_size, torch.device("cpu"))
    return decode_rows(state, torch.zeros(batch, dtype=torch.int32), workspace)


def _prompt(network: Any, num_rows: int, num_sms: int, kernels: KernelSet) -> Any:
    import torch

    from semipd.checkpoints.weights import TORCH_DTYPES
    from semipd.core.plan import blocks_for
    from semipd.network.rows import ChunkRows, StepRows

    tables = torch.zeros(1, blocks_for(kernels.max_model_len, kernels.block_size), dtype=torch.int32)
    plan = network.plan_chunks([num_rows], [num_rows], num_sms)
    ints = torch.zeros(num_rows, dtype=torch.int32)
    starts, lens = torch.tensor([0, num_rows], dtype=torch.int32), torch.tensor([num_rows], dtype=torch.int32)
    work = torch.from_numpy(plan.work)
    config, dtype = kernels.config, TORCH_DTYPES[kernels.dtype]
    context = torch.empty(2, config.num_kv_heads, num_rows, config.head_dim, dtype=dtype)
    chunks = ChunkRows(tables, starts, lens, work, plan, [num_rows], [num_rows], context)
    return StepRows(ints, ints, ints.long(), None, chunks)


def _sample(vocab_size: int) -> None:
    """As a graph does, and through every stage."""
    import torch
    from semipd_kernels.sampling import SamplingWorkspace, sample
    from semipd_kernels.sampling.unfiltered import sample_unfiltered

    from semipd.devices.cuda.lane.warm_up import EVERYTHING
    from semipd.sampling.parameters import RowParams, column_values
    from semipd.sampling.stages import StagePlan

    cpu, slots = torch.device("cpu"), torch.zeros(1, dtype=torch.int64)
    work, counts = SamplingWorkspace(1, vocab_size, 2, cpu), torch.zeros(2, vocab_size, dtype=torch.int32)
    columns = torch.tensor([column_values(EVERYTHING, [1] * 7)] * 2, dtype=torch.int32).t().contiguous()
    plan = StagePlan([(EVERYTHING, 7, 7)], vocab_size)
    stages = plan.bind({name: torch.tensor(v, dtype=torch.int32) for name, v in plan.vectors.items()})
    logits, row = torch.zeros(1, vocab_size), RowParams.of(columns[:, :1].contiguous())
    sample(logits, row, stages, slots, counts, work)
    ints = torch.ones(2, 4, dtype=torch.int32)
    sample_unfiltered(logits, ints[0, :1], columns, ints[1, :1], work)
