"""The real driver over the real cuda-bindings, with a stub for libcuda.so.1: no GPU, but real arguments."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.bindings import CudaDriver

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for the stub of libcuda.so.1")
    folder = tmp_path_factory.mktemp("stub")
    source, library = SUPPORT / "stub_libcuda.c", folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    path = os.pathsep.join(sys.path)
    environ = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, SUPPORT / "drive_stub.py"], env=environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_splits_through_the_real_bindings(found: dict[str, Any]) -> None:
    assert found["splits"] == [[132 - sms, sms] for sms in (16, 24, 32, 40, 48, 64, 80)], found["reason"]
    assert found["disjoint"]
    assert found["split_calls"] == 1
    assert found["priorities"] == [0, -1]
    assert found["shape"] == [15, 8, 12]


def test_nothing_is_left_in_the_driver(found: dict[str, Any]) -> None:
    assert found["alive"] == 0


def test_what_the_device_says_of_itself(found: dict[str, Any]) -> None:
    assert found["name"] == "Stub GPU"
    assert found["uuid"] == "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"
    assert found["memory"] == [100, 140]
    assert found["driver"] == 13000


def test_events_and_moves(found: dict[str, Any]) -> None:
    assert found["events"] == {"asked": [False, True], "elapsed_ms": 1.5, "moves": 7}


def test_refusals_become_errors_with_names(found: dict[str, Any]) -> None:
    refused, missing = found["errors"]
    assert refused == "cuDevResourceGenerateDesc 915 CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION [cuda_error]"
    assert missing.startswith("[cuda_unavailable] cuGreenCtxGetId cannot be called (")
    assert "not found" in missing


def test_a_thread_is_bound_to_the_primary_context(found: dict[str, Any]) -> None:
    assert found["thread"] == ["CUDA_ERROR_INVALID_CONTEXT", "bound"]


# ---- without the package -------------------------------------------------------------------------


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(SemipdError, match=r"cuda-bindings cannot be imported .*pip install 'semipd\[gpu\]'"):
        CudaDriver.open()


class Api(SimpleNamespace):
    """A driver whose calls answer what they are told to."""

    def __init__(self, **answers: object) -> None:
        super().__init__()
        self.CUdevResourceType = int
        for name in ("cuDeviceGet", "cuDevicePrimaryCtxRetain"):
            setattr(self, name, lambda *args: (0, 0))
        self.cuCtxSetCurrent = lambda context: (0,)
        for name, answer in answers.items():
            setattr(self, name, lambda *args, answer=answer: answer)


def driver_of(**answers: object) -> CudaDriver:
    return CudaDriver(Api(**answers), SimpleNamespace(cuda=SimpleNamespace(set_device=lambda _: None)), 0)


@pytest.mark.parametrize(
    ("status", "hint"),
    [(2, "lower kv_fraction"), (700, "outside its buffers"), (805, "MPS"), (123, "CUresult")],
)
def test_errors_carry_call_number_and_next_step(status: int, hint: str) -> None:
    with pytest.raises(SemipdError, match=rf"cuEventRecord failed: unknown error \({status}\)\..*{hint}"):
        driver_of(cuEventRecord=(status,)).record_event(1, 2)  # type: ignore[arg-type]


def test_a_failing_query_is_not_taken_for_running_work() -> None:
    driver = driver_of(cuEventQuery=(700,))
    with pytest.raises(SemipdError, match="cuEventQuery failed"):
        driver.event_done(1)  # type: ignore[arg-type]
    assert driver_of(cuEventQuery=(600,)).event_done(1) is False  # type: ignore[arg-type]


def test_a_placement_check_that_cannot_run_is_an_answer() -> None:
    """Triton fails in many ways; none of them may end the engine."""
    broken = SimpleNamespace(cuda=SimpleNamespace(set_device=lambda _: None))  # no torch.empty
    with pytest.raises(SemipdError, match="placement kernel did not run") as raised:
        CudaDriver(Api(), broken, 0).placement(1, 4, 1000)  # type: ignore[arg-type]
    assert raised.value.code == "placement_failed"
