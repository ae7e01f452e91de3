"""The whole CUDA device with its launch thread, on CPU tensors under the fake driver; then how the engine
process comes to it."""

from dataclasses import replace

import pytest
import torch
from gpulib.steps import StepTimer, lane_splits
from support.cuda_device import RandomModel, greedy_requests, new_driver, open_fake, open_model
from support.cuda_rig import DEFAULTS, TINY, Oracle, random_weights
from support.live_engine import LiveRun

from semipd.config.config import default_engine_settings
from semipd.core.messages import Inbound, SetPartition, Submit
from semipd.core.request import SeqId
from semipd.engine.launcher import spawn_engine
from semipd.wire.engine_link import LINK_FRAME_BYTES
from semipd.wire.frames import FrameReader, encode_frame


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


def test_single_steps_are_timed_under_every_split() -> None:
    device = open_fake(new_driver())
    timer = StepTimer(device)
    assert [sms for sms, _ in lane_splits(device, "decode")][-1] == device.info.num_units
    for _, split in lane_splits(device, "decode"):
        assert timer.decode_ms(split, 4, 40, steps=5) > 0
    for _, split in lane_splits(device, "prefill"):
        assert timer.prefill_ms(split, 20, steps=3) > 0
    device.close()


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
