"""The CUDA device on a real GPU: a small random model against the CPU's decoder."""

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings: pip install 'semipd[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gpulib.host import Host
from gpulib.models import SMALL, RandomModel, reference_weights
from gpulib.parity import Reference, parity_requests

from semipd.config.config import default_engine_settings
from semipd.core.messages import Inbound, SetPartition
from semipd.core.settings import SchedulerName
from semipd.devices.cuda.start import assembly
from semipd.devices.cuda.start.device import CudaDevice
from semipd.devices.cuda.start.platform import Platform, plain_platform, real_platform

SETTINGS = default_engine_settings(
    device="cuda",
    dtype="float32",
    max_num_seqs=16,
    prefill_chunk_tokens=256,
    step_token_budget=256,
    kv_bytes=2**27,
)


@pytest.fixture(scope="module", params=[real_platform, plain_platform], ids=["kernels", "torch"])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    platform_of: Callable[[], Platform] = request.param
    device = CudaDevice.open(SETTINGS, lambda phase, limit_s: None, RandomModel(SMALL), platform_of)
    yield device
    device.close()


@pytest.fixture(scope="module")
def reference() -> Reference:
    source = RandomModel(SMALL)
    return Reference(SMALL, reference_weights(source.read(SETTINGS), source))


@pytest.mark.parametrize("scheduler", ["semipd", "chunked", "prefill-first"])
def test_tokens_are_the_references(
    device: CudaDevice, reference: Reference, scheduler: SchedulerName
) -> None:
    settings = replace(SETTINGS, scheduler=scheduler)
    requests = parity_requests(16, SMALL.vocab_size, seed=3)
    verdict = reference.judge(requests, Host(device, settings).run(requests, 60.0))
    assert (verdict.beyond, verdict.unfinished) == (0, 0), verdict


def test_live_switches_change_no_token(device: CudaDevice, reference: Reference) -> None:
    if not device.info.splits:
        pytest.skip(f"this GPU is not divided: {device.stats()['partition']['reason']}")
    requests = parity_requests(32, SMALL.vocab_size, seed=4)
    turn = 0

    def switch(now_ns: int) -> list[Inbound]:
        nonlocal turn
        turn += 1
        split = device.info.splits[turn % len(device.info.splits)]
        return [SetPartition(1, "fixed", "test", prefill_units=split.prefill_units)]

    run = Host(device, SETTINGS).run(requests, 60.0, switch)
    verdict = reference.judge(requests, run)
    assert (verdict.beyond, verdict.unfinished) == (0, 0), verdict
    assert sum(event.kind == "split_changed" for event in run.events) > 10


@pytest.mark.parametrize(
    ("switch", "value"), [("dependent_launch", True), ("prefill_graphs", True), ("kv_block_size", 64)]
)
def test_switches_of_the_section_cuda_change_no_token(
    reference: Reference, switch: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch == "dependent_launch" and torch.cuda.get_device_capability(0) < (9, 0):
        pytest.skip("programmatic dependent launch exists from sm_90 on")
    monkeypatch.setattr(assembly, "PREFILL_GRAPH_ROWS", (16, 32, 64, 256))
    settings = replace(SETTINGS, cuda=replace(SETTINGS.cuda, **{switch: value}))
    device = CudaDevice.open(settings, lambda phase, limit_s: None, RandomModel(SMALL))
    requests = parity_requests(32, SMALL.vocab_size, seed=5)
    verdict = reference.judge(requests, Host(device, settings).run(requests, 60.0))
    device.close()
    assert (verdict.beyond, verdict.unfinished) == (0, 0), verdict
