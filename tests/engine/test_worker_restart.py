"""Lanes that lose their executor, on the fake device: exact equality, whenever and however often they do."""

import random
from typing import Any

import pytest
from support.fake_engine import RANDOM_VOCAB, Run, random_request, request, submit
from support.mortal_fake import MortalDevice

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, GetStatus, Inbound, SetPartition, Status, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.split import LaneName

MS = 1_000_000


def settings(policy: SchedulerName = "semipd", **options: Any) -> EngineSettings:
    return default_engine_settings(device="fake", scheduler=policy, **options)


def kinds(run: Run, *wanted: str) -> list[tuple[str, object]]:
    return [(event.kind, event.data["lane"]) for event in run.events if event.kind in wanted]


@pytest.mark.parametrize("after_writing", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_the_same_steps_run_again_and_no_token_changes(
    name: LaneName, depth: int, after_writing: bool
) -> None:
    """Killed once after each number of turns."""
    num_lost_steps = 0
    for moment in range(0, 40, 5):
        run = Run(MortalDevice(decode_depth=depth, prefill_depth=depth), settings(prefill_chunk_tokens=16))
        lane = run.device.lane(name)
        requests = [request(i, [i] * (9 * i), max_tokens=12) for i in range(1, 9)]
        run.tick([Submit(r) for r in requests[:4]])
        for turn in range(moment):
            run.tick([Submit(requests[4 + turn])] if turn < 4 else [])
        state = run.coordinator.prefill if name == "prefill" else run.coordinator.decode
        lost = [flight.plan.step_id for flight in state.inflight]
        lane.launched.clear()
        lane.kill(run.now_ns + 5 * MS, after_writing=after_writing)
        run.tick([Submit(r) for r in requests[4 + moment :]])
        run.drain()
        num_lost_steps += len(lost)
        assert lane.launched[: len(lost)] == lost
        assert kinds(run, "worker_died", "worker_restarted") == [
            ("worker_died", name),
            ("worker_restarted", name),
        ]
        for r in requests:
            assert run.tokens[r.seq] == run.expected(r)
        assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1
    assert num_lost_steps > 2, "the kills never met a step"


def test_the_other_lane_goes_on_and_questions_and_cancels_are_answered() -> None:
    run = Run(MortalDevice(), settings(prefill_chunk_tokens=16, partition_mode="fixed", prefill_units=12))
    run.tick([submit(1, [1] * 8, max_tokens=200), submit(2, [2] * 8, max_tokens=200)])
    while not run.coordinator.scheduler.decoding:
        run.tick()
    run.tick([submit(3, [3] * 60, max_tokens=4), submit(4, [4] * 60, max_tokens=4)])
    assert run.coordinator.prefill.inflight
    run.device.prefill.kill(run.now_ns + 50 * MS, after_writing=False)
    run.tick()
    before = {seq: len(tokens) for seq, tokens in run.tokens.items()}
    run.tick([Cancel(SeqId(3)), GetStatus(7), SetPartition(8, "fixed", "somebody", prefill_units=2)])
    answers = [m.nonce for m in run.messages if isinstance(m, Status)]
    assert answers == [7, 8]
    assert run.finished[3].reason == "cancelled"
    while run.device.prefill.back_at_ns is not None:
        assert all(tuple(f.plan.split) == (12, 4) for f in run.coordinator.decode.inflight)
        run.tick()
    assert len(run.tokens[1]) > before[1] + 20
    assert 4 not in run.tokens
    run.drain()
    assert run.tokens[4] == run.expected(request(4, [4] * 60, max_tokens=4))
    assert run.coordinator.split.prefill_units in (0, 2, 16), "the operator's split holds afterwards"
    assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1


def test_prompts_do_not_wait_for_an_idle_prefill_lane() -> None:
    run = Run(MortalDevice(), settings())
    run.tick([submit(1, [1] * 8, max_tokens=200)])
    while not run.coordinator.scheduler.decoding:
        run.tick()
    run.device.prefill.kill(run.now_ns + 10_000 * MS, after_writing=False)
    run.tick([submit(2, [2] * 50, max_tokens=5)])
    while 2 not in run.finished:
        assert run.tick()
    assert run.device.prefill.back_at_ns is not None, "the prompt waited"
    run.drain()
    for seq, prompt, most in ((1, [1] * 8, 200), (2, [2] * 50, 5)):
        assert run.tokens[seq] == run.expected(request(seq, prompt, max_tokens=most))


def test_a_lost_merged_step_keeps_every_unit() -> None:
    """Its prompts must not go on elsewhere before it has run again."""
    run = Run(MortalDevice(), settings(partition_mode="off", step_token_budget=16))
    requests = [request(i, [i] * 100, max_tokens=5) for i in range(1, 4)]
    run.tick([Submit(r) for r in requests])
    run.tick()
    assert run.coordinator.decode.inflight[0].chunks
    run.device.decode.kill(run.now_ns + 50 * MS, after_writing=False)
    while run.device.decode.back_at_ns is not None:
        run.tick()
        assert not run.coordinator.prefill.inflight
    run.drain()
    for r in requests:
        assert run.tokens[r.seq] == run.expected(r)


def mortal_soak(policy: SchedulerName, depth: int, seed: int, num_requests: int) -> int:
    """Random load on a small pool, random deaths, several at once and before the last is mended. Returns how
    many steps were lost."""
    rng = random.Random(seed)
    device = MortalDevice(
        num_blocks=rng.choice([12, 20, 60]), vocab_size=RANDOM_VOCAB, decode_depth=depth, prefill_depth=depth
    )
    options: dict[str, Any] = {
        "max_num_seqs": rng.choice([2, 8, 32]),
        "prefill_chunk_tokens": rng.choice([5, 32, 128]),
        "step_token_budget": rng.choice([40, 128]),
        "merge_tokens": rng.choice([0, 40, 128]),
        "prefill_units": rng.choice([0, 4, 15]),
    }
    run = Run(device, settings(policy, **options))
    requests: dict[SeqId, Request] = {}
    cancelled: set[SeqId] = set()
    num_lost = 0
    while len(requests) < num_requests or not run.coordinator.scheduler.idle:
        inbox: list[Inbound] = []
        while len(requests) < num_requests and rng.random() < 0.4:
            r = random_request(rng, len(requests) + 1, run.now_ns)
            requests[r.seq] = r
            inbox.append(Submit(r))
        if rng.random() < 0.02 and run.coordinator.scheduler.sequences:
            seq = rng.choice(list(run.coordinator.scheduler.sequences))
            cancelled.add(seq)
            inbox.append(Cancel(seq))
        for state in (run.coordinator.prefill, run.coordinator.decode):
            if rng.random() < 0.05 and state.executor == "up":
                num_lost += len(state.inflight)
                delay_ns = rng.choice([1, 2 * MS, 30 * MS])
                device.lane(state.lane.name).kill(run.now_ns + delay_ns, after_writing=rng.random() < 0.5)
        run.tick(inbox)
    for r in requests.values():
        expected, got = run.expected(r), run.tokens.get(r.seq, [])
        if run.finished[r.seq].reason == "cancelled":
            assert r.seq in cancelled
            assert got == expected[: len(got)]
        else:
            assert got == expected
    assert run.coordinator.scheduler.memory.pool.num_free == device.info.num_blocks - 1
    return num_lost


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["semipd", "chunked", "prefill-first"])
def test_random_deaths_under_random_load(policy: SchedulerName, depth: int) -> None:
    """Integrity is checked in every turn."""
    num_lost = sum(mortal_soak(policy, depth, seed, 80) for seed in range(3))
    print(f"{policy}, depth {depth}: 240 requests, {num_lost} steps lost and run again, 0 deviations")
    assert num_lost > 30, "the deaths met no steps"
