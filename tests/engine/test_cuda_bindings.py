"""The real driver over the real cuda-bindings, with a stub for libcuda.so.1: no GPU, but real arguments."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.bindings import CudaDriver
from semipd.devices.cuda.driver.interface import CudaError, Event, Graph, Stream

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


class Pools:
    """torch's memory pools for graphs, with the rules of create_or_incref_pool and releasePool."""

    def __init__(self) -> None:
        self.use_counts: dict[int, int] = {}
        self.calls = list[str]()
        self.failing = 0
        self._handles = count(1)

    def cuda(self) -> SimpleNamespace:
        return SimpleNamespace(
            set_device=lambda ordinal: None,
            synchronize=lambda: None,
            empty_cache=lambda: self.calls.append("empty_cache"),
            graph_pool_handle=lambda: next(self._handles),
            CUDAGraph=lambda: TorchGraph(self),
            ExternalStream=lambda stream, device: stream,
            stream=lambda stream: nullcontext(),
            OutOfMemoryError=MemoryError,
        )

    def capture_begin(self, pool: int) -> None:
        if pool in self.use_counts:
            assert self.use_counts[pool] > 0, "INTERNAL ASSERT FAILED: use_count > 0"
        self.use_counts[pool] = self.use_counts.get(pool, 0) + 1


class TorchGraph:
    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._pool = 0

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self._pools.capture_begin(pool)
        self._pool = pool

    def capture_end(self) -> None:
        if self._pools.failing:
            self.reset()

    def reset(self) -> None:
        self._pools.use_counts[self._pool] -= 1


def capturing(pools: Pools) -> tuple[CudaDriver, Callable[[int], Graph]]:
    driver = CudaDriver(Api(), SimpleNamespace(cuda=pools.cuda()), 0)

    def body() -> None:
        if pools.failing:
            raise MemoryError

    return driver, lambda stream: driver.capture(Stream(stream), body)


def test_a_graph_pool_is_forgotten_with_the_last_graph_of_its_stream() -> None:
    pools = Pools()
    driver, capture = capturing(pools)
    first, second, other = capture(1), capture(1), capture(2)
    assert pools.use_counts == {1: 2, 2: 1}
    driver.destroy_graph(first)
    third = capture(1)
    assert pools.use_counts == {1: 2, 2: 1}
    for graph in (second, third, other):
        driver.destroy_graph(graph)
    capture(1)
    capture(2)
    assert pools.use_counts == {1: 0, 2: 0, 3: 1, 4: 1}


def test_a_pool_whose_only_capture_failed_is_not_used_again() -> None:
    pools = Pools()
    _, capture = capturing(pools)
    pools.failing = 1
    with pytest.raises(MemoryError):
        capture(1)
    pools.failing = 0
    capture(1)
    assert pools.calls == ["empty_cache"]  # the retry, and nothing else
    assert pools.use_counts == {1: 0, 2: 0, 3: 1}


def test_captures_leave_the_cached_memory_of_other_streams_alone() -> None:
    pools = Pools()
    _, capture = capturing(pools)
    assert len({capture(stream) for stream in (1, 1, 2)}) == 3
    assert pools.calls == []


def test_asking_for_an_unfinished_event_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even inside: it is asked every 20 us."""
    driver = driver_of(cuEventQuery=(600,))
    monkeypatch.setattr(CudaError, "__init__", lambda *args: pytest.fail("an exception was made"))
    assert driver.event_done(Event(1)) is False
