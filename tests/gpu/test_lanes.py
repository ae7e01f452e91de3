"""Splits, lanes and placement on a real GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.known import known

from semipd.core.split import LaneName
from semipd.devices.cuda.driver.bindings import CudaDriver
from semipd.devices.cuda.driver.interface import Stream
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.split.placement import CTAS_PER_SM, SPINS_NS
from semipd.devices.cuda.split.streams import Lanes
from semipd.devices.cuda.start.nvml import Nvml

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")

BOTH: tuple[LaneName, LaneName] = ("prefill", "decode")


@pytest.fixture(scope="module")
def driver() -> CudaDriver:
    return CudaDriver.open()


@pytest.fixture(scope="module")
def lanes(driver: CudaDriver) -> Iterator[Lanes]:
    lanes = Lanes.open(driver)
    print(lanes.capability)
    if not lanes.capability.can_partition:
        pytest.skip(lanes.capability.reason)
    yield lanes
    lanes.close()


def seen(driver: CudaDriver, stream: Stream, num_sms: int) -> frozenset[int]:
    return driver.placement(stream, CTAS_PER_SM * num_sms, SPINS_NS[0])


def test_every_lane_runs_on_its_own_sms(driver: CudaDriver, lanes: Lanes) -> None:
    num_sms = lanes.capability.num_sms
    for split in lanes.splits:
        prefill, decode = (seen(driver, lanes.stream(lane, split), num_sms) for lane in BOTH)
        assert (len(prefill), len(decode)) == split
        assert not prefill & decode


def test_splits_are_nested(driver: CudaDriver, lanes: Lanes) -> None:
    """Else more SMs than the difference are contended for while one split replaces another."""
    sets = [seen(driver, lanes.stream("decode", s), lanes.capability.num_sms) for s in lanes.splits]
    assert all(smaller < larger for smaller, larger in pairwise(sets))


def test_solo_lanes_reach_the_whole_device(driver: CudaDriver, lanes: Lanes) -> None:
    num_sms = lanes.capability.num_sms
    for stream in (
        lanes.stream("prefill", lanes.solo_prefill),
        lanes.stream("decode", lanes.solo_decode),
    ):
        assert len(seen(driver, stream, num_sms)) == num_sms


def test_torch_work_goes_to_the_lane_and_moves_keep_its_order(driver: CudaDriver, lanes: Lanes) -> None:
    """Each step adds to and doubles what the step before left, on another stream; any overlap changes it."""
    numbers = torch.zeros(1 << 24, device="cuda")
    torch.cuda.synchronize()
    expected = 0.0
    for turn in range(24):
        stream = lanes.move("decode", lanes.splits[turn * 3 % len(lanes.splits)])
        with driver.on(stream):
            numbers.mul_(2).add_(1)
        expected = expected * 2 + 1
    driver.synchronize_stream(stream)
    assert torch.equal(numbers, torch.full_like(numbers, expected))


def test_a_graph_keeps_the_sms_of_its_capture(driver: CudaDriver, lanes: Lanes) -> None:
    from semipd.devices.cuda.driver.placement_kernel import launch_placement

    split, num_sms = lanes.splits[0], lanes.capability.num_sms
    own, other = lanes.stream("decode", split), lanes.stream("prefill", split)
    smids = torch.full((CTAS_PER_SM * num_sms,), -1, dtype=torch.int32, device="cuda")
    launch_placement(smids, SPINS_NS[0])
    torch.cuda.synchronize()
    graph = driver.capture(own, lambda: launch_placement(smids, SPINS_NS[0]))
    expected = seen(driver, own, num_sms)
    for stream in (own, other, lanes.stream("decode", lanes.solo_decode)):
        smids.fill_(-1)
        torch.cuda.synchronize()
        driver.launch_graph(graph, stream)
        driver.synchronize_stream(stream)
        assert frozenset(smids.tolist()) == expected
    driver.destroy_graph(graph)


def test_no_lane_waits_for_the_other(lanes: Lanes) -> None:
    """Disjoint SMs are not enough: two streams in one hardware queue would run one after the other."""
    assert [note for note in lanes.capability.notes if "wait for each other" in note] == []


def test_events_order_the_lanes(driver: CudaDriver, lanes: Lanes) -> None:
    events = EventPool(driver)
    numbers = torch.zeros(1 << 24, device="cuda")
    torch.cuda.synchronize()
    for turn in range(20):
        writer, reader = BOTH if turn % 2 else BOTH[::-1]
        split = lanes.splits[turn % len(lanes.splits)]
        stream = lanes.move(writer, split)
        with driver.on(stream):
            numbers.add_(1)
        written = events.record(stream)
        driver.wait_event(lanes.move(reader, split), written)
        events.give_back(written)
    torch.cuda.synchronize()
    assert torch.equal(numbers, torch.full_like(numbers, 20.0))


def test_moves_are_counted_and_timed(lanes: Lanes) -> None:
    for turn in range(200):
        lanes.move("prefill", lanes.splits[turn % len(lanes.splits)])
    stats = lanes.switches["prefill"]
    mean_us, max_us = stats.total_ns / stats.count / 1e3, stats.max_ns / 1e3
    print(f"{stats.count} moves, mean {mean_us:.1f} us, most {max_us:.1f} us")
    assert stats.count >= 199


def test_statistics_of_this_gpu(driver: CudaDriver) -> None:
    nvml = Nvml.open(driver.device_uuid())
    found = nvml.stats()
    if "absent" in found:
        pytest.skip(nvml.reason)
    _, total = driver.memory_bytes()
    assert abs(known(found["memory_total_bytes"]) - total) < total * 0.05
    nvml.close()


def test_nothing_is_left_after_many_openings() -> None:
    """In a process of its own: memory of the device before and after."""
    code = """
import os
from semipd.devices.cuda.driver.environment import cuda_environment
os.environ.update(cuda_environment(os.environ))
from semipd.devices.cuda.driver.bindings import CudaDriver
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.split.streams import Lanes
driver = CudaDriver.open()
Lanes.open(driver).close()
before = driver.memory_bytes()[0]
for _ in range(5):
    Lanes.open(driver).close()
lost = before - driver.memory_bytes()[0]
assert lost < 64 * 2**20, f"{lost} bytes lost"
"""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        cwd=Path.cwd(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
