"""Partition control over real workers and arithmetic: the mode changes between steps, the text does not."""

from collections.abc import Iterator
from typing import cast

import pytest
from support.fake_engine import request
from support.live_engine import LiveRun
from support.oracle import GreedyOracle, Verdict
from support.tiny_models import tiny_checkpoint

from semipd.config.config import default_engine_settings
from semipd.core.messages import Inbound, SetPartition, Submit
from semipd.core.split import Split
from semipd.devices.cpu.device import CpuDevice

MAX_TOKENS = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CpuDevice, GreedyOracle]]:
    folder = tiny_checkpoint(tmp_path_factory, "llama")
    settings = default_engine_settings(model_dir=str(folder), dtype="float32", max_num_seqs=8)
    device = CpuDevice.open(settings, lambda phase, limit_s: None)
    yield device, GreedyOracle(folder)
    device.close()


def test_lending_sharing_merging_and_overrides_keep_the_tokens(
    model: tuple[CpuDevice, GreedyOracle],
) -> None:
    """Every 6 turns an operator changes the mode while prompts arrive and answers are under way."""
    device, oracle = model
    if not device.info.splits:
        pytest.skip("this machine has one core: nothing to divide")
    settings = default_engine_settings(prefill_chunk_tokens=16, step_token_budget=24, max_num_seqs=8)
    run = LiveRun(device, settings)
    requests = [
        request(
            i,
            [(7 * i + k) % 300 for k in range(60 + 5 * i)],
            max_tokens=MAX_TOKENS,
            arrival_ns=i,
            temperature=0.0,
        )
        for i in range(1, 13)
    ]
    units = device.info.splits[0].prefill_units
    wishes = [
        SetPartition(1, "off", "ann"),
        SetPartition(2, "fixed", "bob", prefill_units=units),
        SetPartition(3, "auto", "eve"),
    ]
    merged_steps, turns, going = 0, 0, True
    while going or turns < len(requests) * 4:
        inbox: list[Inbound] = []
        if turns % 4 == 0 and turns // 4 < len(requests):
            inbox.append(Submit(requests[turns // 4]))
        if turns % 6 == 5:
            inbox.append(wishes[turns // 6 % 3])
        going = run.turn(inbox)
        merged_steps += sum(bool(f.decodes and f.chunks) for f in run.coordinator.decode.inflight)
        turns += 1
    total = Verdict()
    for r in requests:
        assert len(run.tokens[r.seq]) == MAX_TOKENS
        total += oracle.judge(r.prompt, run.tokens[r.seq])
    print(total)
    seen = {Split(*cast(list[int], e.data["to"])) for e in run.events if e.kind == "split_changed"}
    assert device.info.solo_decode in seen
    assert device.info.splits[0] in seen
    assert merged_steps > 0
    actors = {e.data["actor"] for e in run.events if e.kind == "partition_changed"}
    assert actors == {"ann", "bob", "eve"}
    assert run.coordinator.control.models.phases["decode"].confident
