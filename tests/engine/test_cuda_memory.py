"""Where the memory of the CUDA device goes, on the fake driver: what start-up counts, what steps allocate."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cuda_device import (
    RandomModel,
    fake_platform,
    greedy_requests,
    new_driver,
    open_fake,
)
from support.cuda_rig import CPU, DEFAULTS, MAX_MODEL_LEN, TINY, Oracle, random_weights
from support.deferred_cuda import DeferredCuda
from support.live_engine import LiveRun
from support.temporaries import Temporaries

from semipd.core.errors import SemipdError
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.driver.interface import Graph, Stream
from semipd.devices.cuda.driver.stream_work import Touched
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.devices.cuda.lane.warm_up import WarmUpSize, trial_tokens, warm_up_plans
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler
from semipd.devices.cuda.start import assembly
from semipd.devices.cuda.start.device import CudaDevice
from semipd.devices.cuda.start.opening import RESERVE_BYTES
from semipd.devices.cuda.start.platform import Platform

MIB = 2**20


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


def test_too_little_memory_is_explained() -> None:
    driver = new_driver()
    driver.memory = (RESERVE_BYTES + 1000, 2**31)
    with pytest.raises(SemipdError, match="KV pool does not fit") as raised:
        open_fake(driver)
    assert raised.value.code == "insufficient_memory"
    assert driver.alive() == []


class WatchedCuda(DeferredCuda):
    """Notes what each kind of launched work has allocated at once, at most."""

    def __init__(self) -> None:
        super().__init__(random.Random(0), max_run=8)
        self.memory = new_driver().memory
        self.peaks = defaultdict[str, int](int)
        self.is_watching = False

    def submit(
        self, stream: Stream, label: str, body: Callable[[], None], touched: Callable[[], Touched]
    ) -> None:
        def watched() -> None:
            with Temporaries() as memory:
                body()
            self.peaks[label] = max(self.peaks[label], memory.peak_bytes)

        super().submit(stream, label, watched if self.is_watching else body, touched)


@pytest.mark.parametrize(("label", "max_num_seqs"), [("finish", 2), ("sample", 30)])
def test_what_steps_allocate_stands_in_the_table(label: str, max_num_seqs: int) -> None:
    """The largest step of a lane takes the log-probabilities of a chunk, or those of every resident after a
    sampling that changes logits."""
    config = replace(TINY, vocab_size=2000)
    settings = replace(DEFAULTS, max_num_seqs=max_num_seqs)
    driver = WatchedCuda()
    device = CudaDevice.open(
        settings, lambda phase, limit_s: None, RandomModel(config), fake_platform(driver)
    )
    driver.is_watching = True
    params = SamplingParams(
        max_tokens=4,
        seed=1,
        temperature=0.0,
        logit_bias=((3, 1.0),),
        logprobs=2,
        prompt_logprobs=2,
    )
    num_requests, length = (1, 24) if label == "finish" else (max_num_seqs, 1)
    LiveRun(device, settings).run(
        [Request(SeqId(i + 1), f"r{i}", [5] * length, params, 0) for i in range(num_requests)]
    )
    of_a_lane = device.info.memory["transients"] / 2
    device.close()
    peaks = {name: driver.peaks[name] for name in ("finish", "sample")}
    assert max(peaks.values()) == peaks[label]
    assert 0.9 * of_a_lane < peaks[label] < 1.1 * of_a_lane, (peaks, of_a_lane)


def test_what_a_sampler_works_in_is_counted() -> None:
    """By the kernels' sampler; the other one has nothing of its own."""
    plain, counted = open_fake(new_driver()), new_driver()
    platform = fake_platform(counted)
    samplers = list[KernelSampler]()

    def sampler_of(size: LaneSize) -> KernelSampler:
        samplers.append(KernelSampler(size, CPU))
        return samplers[-1]

    device = CudaDevice.open(
        DEFAULTS, lambda *_: None, RandomModel(), lambda: replace(platform(), sampler_of=sampler_of)
    )
    more = device.info.memory["buffers"] - plain.info.memory["buffers"]
    assert more == sum(sampler.num_bytes for sampler in samplers)
    assert more > 2 * 4 * (DEFAULTS.max_num_seqs + 1) * TINY.vocab_size
    for each in (plain, device):
        each.close()
