"""The CPU device: two worker processes over one copy of the weights and one KV pool (DESIGN section 2)."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.dtypes import resolve_dtype
from semipd.checkpoints.layout import WeightsLayout, plan_weights
from semipd.checkpoints.progress import Report, loading
from semipd.checkpoints.weights import TORCH_DTYPES, load_weights
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName, Split
from semipd.core.state.device import DeviceStats, WorkerState
from semipd.devices.contract import DeviceInfo
from semipd.devices.cpu.arithmetic import native_flags
from semipd.devices.cpu.cgroups import ROOT, read_table
from semipd.devices.cpu.cores import cpu_model, split_table, usable_cores
from semipd.devices.cpu.lane import Awaited, CpuLane
from semipd.devices.cpu.math.packing import Packed, can_pack, pack_weights
from semipd.devices.cpu.memory import SharedMemory, available_memory
from semipd.devices.cpu.messages import Message, Setup
from semipd.devices.cpu.process import Worker, wait_for_all
from semipd.devices.cpu.sizing import BLOCK_SIZE, DEFAULT_KV_FRACTION, HostMemoryDemand
from semipd.network.activations import row_elements
from semipd.network.config import DTypeName, ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.steps.sizing import num_kv_blocks

_READ_LIMIT_S = 10.0
_ATTACH_LIMIT_S = 60.0
_WARM_UP_LIMIT_S = 180.0
_RESERVE_BYTES_PER_S = 200 * 2**20
_WORKER_BYTES = 400 * 2**20
"""A process with torch imported and warm: about 300 MiB, measured."""


@dataclass(frozen=True, slots=True)
class _Model:
    """What the settings and the checkpoint together say."""

    config: ModelConfig
    dtype: DTypeName
    layout: WeightsLayout
    packed: bool
    max_model_len: int

    @classmethod
    def read(cls, settings: EngineSettings) -> "_Model":
        config = load_model_config(settings.model_dir, settings.max_model_len)
        dtype = resolve_dtype(settings.dtype, config, native_flags())
        max_model_len = settings.max_model_len or config.max_position_embeddings
        packed = can_pack(TORCH_DTYPES[dtype])
        return cls(config, dtype, plan_weights(config, dtype, packed=packed), packed, max_model_len)

    def demand(self, settings: EngineSettings) -> HostMemoryDemand:
        logits = self.config.vocab_size * settings.max_num_seqs
        widest = logits + row_elements(self.config) * _max_step_tokens(settings)
        return HostMemoryDemand(
            available=available_memory(),
            weights_bytes=self.layout.total_bytes,
            # Activations in fp32, thrice: some operations hold input, output and a temporary.
            worker_bytes=2 * (_WORKER_BYTES + 3 * 4 * widest),
            block_size=BLOCK_SIZE,
            block_bytes=KvLayout.of(self.config, BLOCK_SIZE).block_bytes(self.dtype),
            max_model_len=self.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_bytes=settings.kv_bytes,
            kv_fraction=settings.kv_fraction or DEFAULT_KV_FRACTION,
            max_num_blocks=settings.max_num_blocks,
        )


class CpuDevice:
    """See devices.contract.Device. Open and poll in the main thread: the workers' death signal follows it."""

    def __init__(self, info: DeviceInfo, prefill: CpuLane, decode: CpuLane, stack: ExitStack) -> None:
        self.info = info
        self.prefill = prefill
        self.decode = decode
        self._lanes = (prefill, decode)
        self._stack = stack

    @classmethod
    def open(cls, settings: EngineSettings, report: Report) -> "CpuDevice":
        """Reserve memory, start both workers, load the weights meanwhile, warm up.

        Raises SemipdError: what reading the checkpoint raises, or `insufficient_memory`; LaneFailed when a
        worker does not start. Nothing is left behind then.
        """
        assert threading.current_thread() is threading.main_thread(), (
            "workers must be spawned by the main thread"
        )
        with ExitStack() as stack:
            report("reading configuration", _READ_LIMIT_S)
            model = _Model.read(settings)
            demand = model.demand(settings)
            num_blocks = num_kv_blocks(demand)
            kv_bytes = num_blocks * demand.block_bytes
            report("reserving memory", 10 + (model.layout.total_bytes + kv_bytes) / _RESERVE_BYTES_PER_S)
            weights = _reserve(stack, "weights", model.layout.total_bytes)
            kv_pool = _reserve(stack, "kv-pool", kv_bytes)
            cores = usable_cores()
            setup = _setup(settings, model, num_blocks, weights, kv_pool, cores)
            workers = [_start(stack, setup, lane) for lane in ("prefill", "decode")]
            packed = _load(model, settings.model_dir, weights, report)
            token_ns = _bring_up(workers, packed, report, settings.start_patience)
            lanes = []
            for worker in workers:
                start = _replacement_start(setup, worker.lane, packed)
                words = _start_words(settings.start_patience)
                lanes.append(CpuLane(worker, start, words, settings.worker_step_limit_s, token_ns))
                stack.callback(lanes[-1].end)
            info = _info(model, settings, demand, num_blocks, cores)
            return cls(info, lanes[0], lanes[1], stack.pop_all())

    def files(self) -> Sequence[int]:
        return [fd for lane in self._lanes for fd in lane.files()]

    def wake_at_ns(self) -> int | None:
        times = [lane.wake_at_ns() for lane in self._lanes]
        return min((time for time in times if time is not None), default=None)

    def stats(self) -> DeviceStats:
        workers: dict[LaneName, WorkerState] = {
            lane.name: {
                "pid": lane.worker.pid,
                "rss_bytes": _rss_bytes(lane.worker.pid),
                "state": lane.state,
                "restarts": lane.num_restarts,
            }
            for lane in self._lanes
        }
        free = available_memory()
        return {
            "workers": workers,
            "memory": dict(self.info.memory),
            "available": {"num_bytes": free.num_bytes, "source": free.source},
        }

    def close(self) -> None:
        self._stack.close()


def _reserve(stack: ExitStack, name: str, num_bytes: int) -> SharedMemory:
    memory = SharedMemory.reserve(name, num_bytes)
    stack.callback(memory.close)
    return memory


def _setup(
    settings: EngineSettings,
    model: _Model,
    num_blocks: int,
    weights: SharedMemory,
    kv_pool: SharedMemory,
    cores: tuple[int, ...],
) -> Callable[[LaneName], Setup]:
    """A lane's first frame."""
    table = split_table(len(cores))

    def of(lane: LaneName) -> Setup:
        return Setup(
            lane=lane,
            model_dir=settings.model_dir,
            max_model_len=model.max_model_len,
            dtype=model.dtype,
            packed=model.packed,
            num_blocks=num_blocks,
            weights_fd=weights.fd,
            kv_fd=kv_pool.fd,
            cores=cores,
            split=table[len(table) // 2] if table else _solo(lane, len(cores)),
            warm_up_tokens=min(64, settings.prefill_chunk_tokens),
        )

    return of


def _spawn(setup: Setup) -> Worker:
    worker = Worker(setup.lane, len(setup.cores), (setup.weights_fd, setup.kv_fd))
    worker.channel.send(setup.to_wire())
    return worker


def _start(stack: ExitStack, setup_of: Callable[[LaneName], Setup], lane: LaneName) -> Worker:
    worker = _spawn(setup_of(lane))
    stack.callback(worker.end)
    return worker


def _replacement_start(
    setup_of: Callable[[LaneName], Setup], lane: LaneName, packed: Packed
) -> Callable[[], Worker]:
    """Starts another worker of the lane: the weights are there, so it may warm up as soon as it can."""

    def start() -> Worker:
        worker = _spawn(setup_of(lane))
        worker.channel.send(_warm_up(packed))
        return worker

    return start


def _load(model: _Model, model_dir: str, memory: SharedMemory, report: Report) -> Packed:
    load_weights(model_dir, model.config, model.layout, memory.tensor(), loading(report))
    return pack_weights(model.layout, memory.tensor()) if model.packed else {}


def _warm_up(packed: Packed) -> Message:
    return {"op": "warm_up", "packed": packed}


def _start_words(patience: float) -> list[Awaited]:
    return [
        Awaited("attached", "attach", _ATTACH_LIMIT_S * patience),
        Awaited("ready", "warm up", _WARM_UP_LIMIT_S * patience),
    ]


def _bring_up(workers: list[Worker], packed: Packed, report: Report, patience: float) -> int:
    """Returns the nanoseconds that a prompt token took the slower one while warming up."""
    attached, ready = _start_words(patience)
    report("starting workers", _ATTACH_LIMIT_S)
    wait_for_all(workers, *attached)
    report("warming up", _WARM_UP_LIMIT_S)
    for worker in workers:
        worker.channel.send(_warm_up(packed))
    return max(int(message["token_ns"]) for message in wait_for_all(workers, *ready))


def _solo(lane: LaneName, num_cores: int) -> Split:
    return Split(num_cores, 0) if lane == "prefill" else Split(0, num_cores)


def _max_step_tokens(settings: EngineSettings) -> int:
    return max(settings.prefill_chunk_tokens, settings.step_token_budget)


def _info(
    model: _Model, settings: EngineSettings, demand: HostMemoryDemand, num_blocks: int, cores: tuple[int, ...]
) -> DeviceInfo:
    return DeviceInfo(
        kind="cpu",
        name=f"cpu: {cpu_model()}, {len(cores)} {'core' if len(cores) == 1 else 'cores'}",
        unit="core",
        num_units=len(cores),
        splits=split_table(len(cores)),
        solo_prefill=_solo("prefill", len(cores)),
        solo_decode=_solo("decode", len(cores)),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        vocab_size=model.config.vocab_size,
        max_model_len=model.max_model_len,
        dtype=model.dtype,
        memory={
            "weights": demand.weights_bytes,
            "kv_pool": num_blocks * demand.block_bytes,
            "workers": demand.worker_bytes,
        },
        max_step_tokens=_max_step_tokens(settings),
    )


def _rss_bytes(pid: int) -> int:
    """0 when the process is gone."""
    return read_table(ROOT / f"proc/{pid}/status").get("VmRSS", 0) * 1024
