"""The whole CUDA device with its launch thread, on CPU tensors under the fake driver; then how the engine
process comes to it."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpulib.steps import StepTimer, lane_splits
from support.cuda_rig import CPU, DEFAULTS, MAX_MODEL_LEN, TINY, Oracle, random_weights
from support.deferred_cuda import DeferredCuda, WatchedStaging
from support.live_engine import LiveRun

from semipd.checkpoints.progress import Report
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.messages import Inbound, SetPartition, Submit
from semipd.core.plan import StepPlan
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.devices.contract import LaneFailed
from semipd.devices.cuda.driver.diagnosis import diagnose
from semipd.devices.cuda.driver.interface import CudaError, Graph, Stream
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, leave_matmuls
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.devices.cuda.lane import executor, launch_loop, launch_thread
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphKey
from semipd.devices.cuda.lane.warm_up import WarmUpSize, trial_tokens, warm_up_plans
from semipd.devices.cuda.sampler.sampler import TorchSampler
from semipd.devices.cuda.start import assembly, compiling, opening
from semipd.devices.cuda.start.compiling import KernelSet
from semipd.devices.cuda.start.device import CudaDevice
from semipd.devices.cuda.start.model import DeviceModel, cuda_dtype
from semipd.devices.cuda.start.opening import RESERVE_BYTES
from semipd.devices.cuda.start.platform import Platform, can_launch_dependently
from semipd.engine.launcher import spawn_engine
from semipd.network.config import ModelConfig
from semipd.network.ops_torch import TorchOps
from semipd.wire.engine_link import LINK_FRAME_BYTES
from semipd.wire.frames import FrameReader, encode_frame

MIB = 2**20


class RandomModel:
    """A ModelSource."""

    def __init__(self, config: ModelConfig = TINY) -> None:
        self.config = config
        self.weights = random_weights(config)

    def read(self, settings: EngineSettings) -> DeviceModel:
        return DeviceModel.of(self.config, settings)

    def load(self, model: DeviceModel, buffer: torch.Tensor, report: Report) -> None:
        report("loading weights", 1.0)
        for spec in model.layout.tensors:
            weight = self.weights[spec.name]
            raw = weight.contiguous().view(torch.uint8).flatten()
            buffer[spec.offset_bytes : spec.offset_bytes + raw.numel()] = raw


def fake_platform(
    driver: DeferredCuda, aim_matmuls_of: Callable[[int], AimMatmuls] = lambda num_sms: leave_matmuls
) -> Callable[[], Platform]:
    zeroed = [(lane, part) for lane in ("prefill", "decode") for part in ("slots", "history", "rows")]

    def platform() -> Platform:
        driver.bind_thread()
        return Platform(
            driver=driver,
            submit=driver.submit,
            staging=WatchedStaging(driver),
            device=CPU,
            ops_of=lambda model, settings: TorchOps(),
            sampler_of=lambda size: TorchSampler(),
            uuid="",
            synchronize=lambda: driver.host("device synchronised", writes=zeroed),
            close=_nothing,
            aim_matmuls_of=aim_matmuls_of,
        )

    return platform


def _nothing() -> None:
    pass


def new_driver(seed: int = 0) -> DeferredCuda:
    driver = DeferredCuda(random.Random(seed), max_run=8)
    driver.memory = (RESERVE_BYTES + 2**24, 2**31)
    return driver


def open_fake(
    driver: DeferredCuda, settings: EngineSettings = DEFAULTS, phases: list[str] | None = None
) -> CudaDevice:
    torch.set_num_threads(1)

    def report(phase: str, limit_s: float) -> None:
        assert limit_s > 0
        if phases is not None:
            phases.append(phase)

    return CudaDevice.open(settings, report, RandomModel(), fake_platform(driver))


def open_model(model: RandomModel, driver: DeferredCuda) -> CudaDevice:
    torch.set_num_threads(1)
    return CudaDevice.open(DEFAULTS, lambda phase, limit_s: None, model, fake_platform(driver))


def test_a_model_that_never_has_logits_is_refused() -> None:
    model, driver = RandomModel(), new_driver()
    model.weights["norm"].fill_(torch.nan)
    with pytest.raises(LaneFailed, match="in float32 they hold NaN or infinity for each of") as raised:
        open_model(model, driver)
    assert raised.value.code == "invalid_logits"
    assert driver.alive() == []


@pytest.mark.parametrize("bad", [0, 2, 37])
def test_a_model_with_one_bad_row_serves(bad: int) -> None:
    """0: padding rows compute it. 37: the first token that the trial takes."""
    model = RandomModel()
    model.weights["embed"][bad] = torch.nan
    model.weights["lm_head"][bad] = 0.0
    device = open_model(model, new_driver())
    good = [replace(r, prompt=[t if t != bad else 5 for t in r.prompt]) for r in greedy_requests(4)]
    run = LiveRun(device, DEFAULTS)
    run.run([*good, replace(good[0], seq=SeqId(9), prompt=[1, bad, 3])])
    oracle = Oracle(TINY, model.weights)
    assert all(run.tokens[r.seq] == oracle.generate(r)[0] for r in good)
    assert (run.finished[SeqId(9)].code, SeqId(9) in run.tokens) == ("invalid_logits", False)
    device.close()


@pytest.mark.parametrize("wanted", [False, True])
def test_cublas_is_told_the_lanes_sms_only_where_that_is_wanted(wanted: bool) -> None:
    driver, told = new_driver(), list[int]()

    def aim_matmuls_of(device_sms: int) -> AimMatmuls:
        told.append(device_sms)
        return told.append

    settings = replace(DEFAULTS, cuda=replace(DEFAULTS.cuda, sm_carveout=wanted))
    platform = fake_platform(driver, aim_matmuls_of)
    device = CudaDevice.open(settings, lambda phase, limit_s: None, RandomModel(), platform)
    lanes = {split.units_of(lane) for split in device.info.splits for lane in ("prefill", "decode")}
    assert set(told) == (lanes | {132} if wanted else set())
    device.close()


def greedy_requests(count: int) -> list[Request]:
    rng = random.Random(count)
    greedy = SamplingParams(max_tokens=20, seed=1, temperature=0.0)
    prompts = [[rng.randrange(61) for _ in range(rng.randrange(1, 70))] for _ in range(count)]
    return [Request(SeqId(i + 1), f"r{i}", prompt, greedy, 0) for i, prompt in enumerate(prompts)]


def test_opens_serves_through_switches_and_leaves_nothing_behind() -> None:
    driver, phases = new_driver(), list[str]()
    device = open_fake(driver, phases=phases)
    assert phases == [
        "starting CUDA",
        "loading weights",
        "dividing the SMs",
        "compiling kernels",
        *(f"warming up: stream {number} of 16" for number in range(1, 17)),
        "capturing graphs",
    ]
    assert sum(device.info.memory.values()) == driver.memory[1]
    assert device.stats()["graphs"] == {
        "captured": len(device.info.splits) * 4 + 4,
        "missing": 0,
        "hits": 0,
        "misses": 0,
    }
    requests = greedy_requests(12)
    run = LiveRun(device, DEFAULTS)
    going, turns = True, 0
    while going or requests[turns:]:
        inbox: list[Inbound] = [Submit(requests[turns])] if turns < len(requests) else []
        split = device.info.splits[turns % len(device.info.splits)]
        inbox.append(SetPartition(1, "fixed", "test", prefill_units=split.prefill_units))
        going = run.turn(inbox)
        turns += 1
    oracle = Oracle(TINY, random_weights(TINY))
    for request in requests:
        assert run.tokens[request.seq] == oracle.generate(request)[0]
    stats = device.stats()
    assert stats["graphs"]["misses"] == 0
    assert stats["graphs"]["hits"] > 20
    assert stats["switches"]["decode"]["count"] > 2
    device.close()
    device.close()
    driver.check_order()
    assert driver.alive() == []


@pytest.mark.parametrize(("arch", "wanted"), [(80, False), (90, False), (90, True), (100, True)])
def test_kernels_are_launched_dependently_where_it_is_wanted(arch: int, wanted: bool) -> None:
    pytest.importorskip("triton")
    settings = replace(DEFAULTS.cuda, dependent_launch=wanted)
    assert can_launch_dependently(settings, arch) == wanted


def test_dependent_launches_that_are_not_to_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    settings = replace(DEFAULTS.cuda, dependent_launch=True)
    with pytest.raises(SemipdError, match=r"compute capability 9 on, the GPU has 8\.6"):
        can_launch_dependently(settings, 86)
    monkeypatch.setattr(compiler, "CUDAOptions", Versionless)
    with pytest.raises(SemipdError, match=r"Triton \S+ does not offer it\. .*"):
        can_launch_dependently(settings, 90)


@dataclass
class Versionless:
    """Options of a compiler that has never heard of it."""

    num_warps: int = 4


def test_prefill_graphs_are_captured_counted_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph takes a MiB of the fake's memory."""
    monkeypatch.setattr(assembly, "PREFILL_GRAPH_ROWS", (8, 24))
    model, driver = RandomModel(replace(TINY, head_dim=64)), new_driver()
    capture, destroy = driver.capture, driver.destroy_graph

    def take(num_bytes: int) -> None:
        driver.memory = (driver.memory[0] - num_bytes, driver.memory[1])

    def taking(stream: Stream, body: Callable[[], None]) -> Graph:
        take(MIB)
        return capture(stream, body)

    def giving(graph: Graph) -> None:
        take(-MIB)
        destroy(graph)

    driver.capture, driver.destroy_graph = taking, giving  # type: ignore[method-assign]
    driver.memory = (2 * RESERVE_BYTES, 4 * RESERVE_BYTES)

    def platform() -> Platform:
        return replace(fake_platform(driver)(), ops_of=lambda *_: KernelOps(torch.float32, 90))

    settings = replace(DEFAULTS, cuda=replace(DEFAULTS.cuda, prefill_graphs=True))
    device = CudaDevice.open(settings, lambda phase, limit_s: None, model, platform)
    # Of each split four buckets of decode, and two sizes of one group of three layers.
    num_graphs = (len(device.info.splits) + 1) * (4 + 2)
    assert (device.info.memory["graphs"], device.stats()["graphs"]["captured"]) == (
        num_graphs * MIB,
        num_graphs,
    )
    requests = greedy_requests(6)
    run = LiveRun(device, settings)
    run.run(requests)
    oracle = Oracle(model.config, model.weights)
    assert run.tokens == {request.seq: oracle.generate(request)[0] for request in requests}
    assert device._opened.graphs["prefill"].num_hits > 3
    device.close()
    driver.check_order()
    assert driver.alive() == []


def test_the_device_has_the_block_size_that_was_asked_for() -> None:
    """And memory for what torch's attention copies and returns."""
    switches = replace(DEFAULTS.cuda, kv_block_size=64, prefill_attention="sdpa")
    settings, driver = replace(DEFAULTS, cuda=switches), new_driver()
    plain, device = open_fake(new_driver()), open_fake(driver, settings)
    context_bytes = 2 * TINY.num_kv_heads * TINY.head_dim * 4 * MAX_MODEL_LEN
    attended_bytes = 24 * TINY.q_width * 4 * (len(device.info.splits) + 1)
    bytes_more = {name: device.info.memory[name] - plain.info.memory[name] for name in ("buffers", "reserve")}
    assert bytes_more["reserve"] == 2 * attended_bytes
    # Tables have fewer entries.
    assert 2 * context_bytes * 0.8 < bytes_more["buffers"] < 2 * context_bytes
    assert device.info.block_size == 64
    assert device.info.memory["kv_pool"] == device.info.num_blocks * 64 * 2 * 3 * 2 * 8 * 4
    run, requests = LiveRun(device, settings), greedy_requests(4)
    run.run(requests)
    oracle = Oracle(TINY, random_weights(TINY))
    assert run.tokens == {request.seq: oracle.generate(request)[0] for request in requests}
    for each in (plain, device):
        each.close()


def test_graphs_that_start_up_had_no_time_for_can_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "CAPTURE_AT_START_S", -1.0)
    monkeypatch.setattr(launch_loop, "IDLE_BEFORE_CAPTURE_NS", 0)
    device = open_fake(new_driver())
    assert device.wait_for_graphs(60.0) == 0
    assert device.stats()["graphs"]["captured"] == len(device.info.splits) * 4 + 4
    device.close()


def test_compiling_takes_nothing_from_the_time_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes before captures seem to take an hour; the limit is for the captures."""
    hours = [0.0]
    warm_up = LaneExecutor.warm_up

    def slow(lane: LaneExecutor, key: GraphKey) -> None:
        hours[0] += 3600.0
        warm_up(lane, key)

    clock = SimpleNamespace(monotonic=lambda: hours[0], monotonic_ns=time.monotonic_ns)
    monkeypatch.setattr(executor, "time", clock)
    monkeypatch.setattr(LaneExecutor, "warm_up", slow)
    device = open_fake(new_driver())
    assert device.stats()["graphs"]["missing"] == 0
    device.close()


def test_each_stage_of_start_up_has_its_own_limit() -> None:
    thread, reported = launch_thread.LaunchThread(_nothing, _diagnosis), list[tuple[str, float]]()
    stages = [
        launch_thread.Stage("one", 60.0, _nothing),
        launch_thread.Stage("two", 0.01, lambda: time.sleep(0.5)),
    ]
    loop: Any = SimpleNamespace(turn=lambda now_ns: False, use_pause=lambda now_ns: False, is_busy=False)
    with pytest.raises(LaneFailed, match=r"not come past this within 0\.01 s: two\."):
        thread.start(loop, stages, lambda words, limit_s: reported.append((words, limit_s)))
    assert reported == [("one", 60.0), ("two", 0.01)]
    assert thread.stop()
    thread.close()


def _diagnosis(error: BaseException) -> LaneFailed:
    return diagnose(error, lambda: "")


def test_warm_up_leaves_no_cached_memory_and_prompt_logprobs_stay_on_solo_streams() -> None:
    driver = new_driver()
    device = open_fake(driver)
    size = WarmUpSize(60, 16, 24, 160)
    tokens = trial_tokens(61)
    plans = {
        wanted: [*warm_up_plans(device.info.solo_decode, size, tokens, with_prompt_logprobs=wanted)]
        for wanted in (False, True)
    }
    asks = {wanted: [s.prompt_logprobs for p in of for s in p.segments] for wanted, of in plans.items()}
    assert asks == {False: [None, None], True: [None, 2]}
    assert driver.log.count("release cached") == 5  # around two trial graphs, and after the warm-up
    device.close()


class CachingCuda(DeferredCuda):
    """An allocator that keeps what passes gave back, until it is told to release it."""

    cached_bytes = 0
    graphs_bytes = 0

    def memory_bytes(self) -> tuple[int, int]:
        return self.memory[0] - self.cached_bytes - self.graphs_bytes, self.memory[1]

    def release_cached(self) -> None:
        self.cached_bytes = 0

    def submit(self, stream: Stream, label: str, *args: Any) -> None:
        self.cached_bytes = 2**22
        super().submit(stream, label, *args)

    def capture(self, stream: Stream, body: Callable[[], None]) -> Graph:
        self.cached_bytes = 0  # as torch.cuda.graph does, and the second try of ours
        self.graphs_bytes += 2**10
        return super().capture(stream, body)

    def destroy_graph(self, graph: Graph) -> None:
        self.graphs_bytes -= 2**10
        super().destroy_graph(graph)


def test_the_memory_of_graphs_is_not_hidden_by_what_warm_up_leaves_cached() -> None:
    driver = CachingCuda(random.Random(0), max_run=8)
    driver.memory = new_driver().memory
    device = open_fake(driver)
    assert device.info.memory["graphs"] == 2**10 * device.stats()["graphs"]["captured"]
    device.close()


def test_kernels_are_compiled_for_every_lane_before_anything_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases, asked = list[str](), list[KernelSet]()

    def compile_all(kernels: KernelSet, *, progress: Callable[[int, int], None]) -> None:
        asked.append(kernels)
        progress(1, 1)

    monkeypatch.setattr(compiling, "compile_all", compile_all)
    driver = new_driver()
    platform = replace(fake_platform(driver)(), kernel_arch=90)
    device = CudaDevice.open(
        DEFAULTS, lambda phase, limit_s: phases.append(phase), RandomModel(), lambda: platform
    )
    splits, kernels = device.info.splits, asked[0]
    units = {unit for split in splits for unit in (split.prefill_units, split.decode_units)}
    assert set(kernels.lane_sms) == {*units, device.info.num_units}
    assert (kernels.arch, kernels.block_size) == (90, device.info.block_size)
    at = phases.index("compiling kernels: 1 of 1")
    assert phases[at - 1] == "compiling kernels"
    device.close()


def test_a_device_that_cannot_be_divided_serves_merged_steps() -> None:
    driver = new_driver()
    driver.fail("create_green_context", times=1000)
    device = open_fake(driver)
    assert device.info.splits == ()
    assert (
        "cuGreenCtxCreate" in device.stats()["partition"]["reason"] or device.stats()["partition"]["reason"]
    )
    run = LiveRun(device, DEFAULTS)
    assert run.coordinator.policy == "chunked"
    requests = greedy_requests(5)
    run.run(requests)
    oracle = Oracle(TINY, random_weights(TINY))
    assert run.tokens == {request.seq: oracle.generate(request)[0] for request in requests}
    device.close()
    assert driver.alive() == []


@pytest.mark.parametrize("call", ["create_stream", "capture", "create_event", "record_event"])
def test_a_start_that_fails_leaves_nothing_behind(call: str) -> None:
    driver = new_driver()
    driver.bind_thread()
    driver.fail(call, at=1 if call != "capture" else 9, times=1 if call == "capture" else 10_000)
    with pytest.raises(SemipdError):
        open_fake(driver)
    assert driver.alive() == []


def test_too_little_memory_is_explained() -> None:
    driver = new_driver()
    driver.memory = (RESERVE_BYTES + 1000, 2**31)
    with pytest.raises(SemipdError, match="KV pool does not fit") as raised:
        open_fake(driver)
    assert raised.value.code == "insufficient_memory"
    assert driver.alive() == []


def launch_prompt(device: CudaDevice) -> None:
    run = LiveRun(device, DEFAULTS)
    run.run(greedy_requests(1))


def test_a_fault_while_serving_ends_the_lane_with_a_diagnosis() -> None:
    driver = new_driver()
    device = open_fake(driver)
    driver.fail("record_event", at=3, status=700)
    with pytest.raises(LaneFailed, match=r"record_event failed.*lane: split .*GiB are free") as raised:
        launch_prompt(device)
    assert raised.value.code == "device_fault"
    device.close()


def test_a_call_that_does_not_return_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = new_driver()
    device = open_fake(driver)
    monkeypatch.setattr(launch_thread, "TURN_LIMIT_S", 0.05)
    real = driver.record_event

    noticed = threading.Event()

    def slow(event: int, stream: int) -> None:
        noticed.wait()
        real(event, stream)  # type: ignore[arg-type]

    driver.record_event = slow  # type: ignore[method-assign]
    device.prefill.launch(StepPlan(1, device.info.solo_prefill), 0)
    time.sleep(0.25)
    with pytest.raises(LaneFailed) as raised:
        device.prefill.poll(0)
    assert raised.value.code == "device_hangs"
    assert device.wake_at_ns() is not None
    noticed.set()
    device.close()


def test_single_steps_are_timed_under_every_split() -> None:
    device = open_fake(new_driver())
    timer = StepTimer(device)
    assert [sms for sms, _ in lane_splits(device, "decode")][-1] == device.info.num_units
    for _, split in lane_splits(device, "decode"):
        assert timer.decode_ms(split, 4, 40, steps=5) > 0
    for _, split in lane_splits(device, "prefill"):
        assert timer.prefill_ms(split, 20, steps=3) > 0
    device.close()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CudaError("cuEventQuery", 700, "ILLEGAL_ADDRESS", "Hint."), "device_fault", "cuEventQuery failed"),
        (CudaError("cuEventQuery", 999, "UNKNOWN", "Hint."), "cuda_error", "UNKNOWN (999)"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate\nmore"),
            "device_out_of_memory",
            "Tried to allocate.",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            "device_fault",
            "illegal memory",
        ),
        (RuntimeError("CUDA error: something else"), "cuda_error", "something else"),
        (SemipdError("invalid_logits", "NaN.", "Check."), "invalid_logits", "NaN."),
        (AssertionError("17 blocks"), "engine_bug", "17 blocks"),
    ],
)
def test_every_failure_has_a_code_and_says_where(error: BaseException, code: str, words: str) -> None:
    answer = diagnose(error, lambda: "Decode lane: split 84+48.")
    assert answer.code == code
    assert words in answer.message
    assert answer.message.endswith("Decode lane: split 84+48.")
    assert answer.hint


def test_a_sick_device_does_not_hide_its_sickness() -> None:
    def sick() -> str:
        raise CudaError("cuMemGetInfo", 719, "LAUNCH_FAILED", "")

    assert "cannot be told" in diagnose(AssertionError("first"), sick).message
    assert "first" in diagnose(AssertionError("first"), sick).message


def test_dtype_is_the_checkpoints_unless_said_otherwise() -> None:
    assert cuda_dtype("auto", TINY) == "float32"
    assert cuda_dtype("float16", TINY) == "float16"
    with pytest.raises(SemipdError, match="float64"):
        cuda_dtype("float64", TINY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_engine_process_says_that_there_is_no_cuda() -> None:
    child = spawn_engine()
    child.link.settimeout(60)
    child.link.sendall(
        encode_frame({"op": "start", "settings": default_engine_settings(device="cuda").to_wire()})
    )
    reader, frames = FrameReader(LINK_FRAME_BYTES), list[dict[str, object]]()
    while not any(frame["op"] == "failed" for frame in frames):
        frames += reader.feed(child.link.recv(65536))
    assert frames[-1]["code"] == "cuda_unavailable"
    child.link.close()
    assert child.process.wait(timeout=20) == 1
