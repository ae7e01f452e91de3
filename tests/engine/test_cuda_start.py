"""Start-up of the CUDA device on the fake driver: stages and limits, what it compiles, what it refuses."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cuda_device import RandomModel, fake_platform, new_driver, nothing, open_fake, open_model
from support.cuda_rig import DEFAULTS, TINY

from semipd.core.errors import SemipdError
from semipd.devices.contract import LaneFailed
from semipd.devices.cuda.driver.diagnosis import diagnose
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls
from semipd.devices.cuda.lane import executor, launch_loop, launch_thread
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphKey
from semipd.devices.cuda.start import compiling, opening
from semipd.devices.cuda.start.compiling import KernelSet
from semipd.devices.cuda.start.device import CudaDevice
from semipd.devices.cuda.start.model import cuda_dtype
from semipd.devices.cuda.start.platform import can_launch_dependently, can_load_by_tma


def test_a_model_that_never_has_logits_is_refused() -> None:
    model, driver = RandomModel(), new_driver()
    model.weights["norm"].fill_(torch.nan)
    with pytest.raises(LaneFailed, match="in float32 they hold NaN or infinity for each of") as raised:
        open_model(model, driver)
    assert raised.value.code == "invalid_logits"
    assert driver.alive() == []


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


@pytest.mark.parametrize(("arch", "wanted"), [(80, False), (90, False), (90, True), (100, True)])
def test_kernels_are_launched_dependently_where_it_is_wanted(arch: int, wanted: bool) -> None:
    pytest.importorskip("triton")
    settings = replace(DEFAULTS.cuda, dependent_launch=wanted)
    assert can_launch_dependently(settings, arch) == wanted


def test_tma_that_is_not_to_be_had_is_refused() -> None:
    settings = replace(DEFAULTS.cuda, tma_loads=True)
    assert can_load_by_tma(settings, "bfloat16", 90)
    assert not can_load_by_tma(DEFAULTS.cuda, "float32", 80)
    with pytest.raises(SemipdError, match=r"the GPU has 8\.6, the model's type is float16"):
        can_load_by_tma(settings, "float16", 86)
    with pytest.raises(SemipdError, match=r"the GPU has 9\.0, the model's type is float32"):
        can_load_by_tma(settings, "float32", 90)


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
    thread, reported = launch_thread.LaunchThread(nothing, _diagnosis), list[tuple[str, float]]()
    stages = [
        launch_thread.Stage("one", 60.0, nothing),
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


@pytest.mark.parametrize("call", ["create_stream", "capture", "create_event", "record_event"])
def test_a_start_that_fails_leaves_nothing_behind(call: str) -> None:
    driver = new_driver()
    driver.bind_thread()
    driver.fail(call, at=1 if call != "capture" else 9, times=1 if call == "capture" else 10_000)
    with pytest.raises(SemipdError):
        open_fake(driver)
    assert driver.alive() == []


def test_dtype_is_the_checkpoints_unless_said_otherwise() -> None:
    assert cuda_dtype("auto", TINY) == "float32"
    assert cuda_dtype("float16", TINY) == "float16"
    with pytest.raises(SemipdError, match="float64"):
        cuda_dtype("float64", TINY)
