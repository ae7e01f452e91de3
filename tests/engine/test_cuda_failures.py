"""Failures of the CUDA device while it serves: noticed, named, and ended."""

import threading
import time

import pytest
from support.cuda_device import greedy_requests, new_driver, open_fake
from support.cuda_rig import DEFAULTS
from support.live_engine import LiveRun

from semipd.core.errors import SemipdError
from semipd.core.plan import StepPlan
from semipd.devices.contract import LaneFailed
from semipd.devices.cuda.driver.diagnosis import diagnose
from semipd.devices.cuda.driver.interface import CudaError
from semipd.devices.cuda.lane import launch_thread
from semipd.devices.cuda.start.device import CudaDevice


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
