"""Random load on a small pool: integrity every turn, no block lost, tokens equal an undisturbed run."""

import random
from typing import cast, get_args

import pytest
from support.fake_engine import RANDOM_VOCAB, Run, random_request

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Inbound, SetPartition, SetSlo, Submit
from semipd.core.plan import blocks_for
from semipd.core.request import Request, SeqId
from semipd.core.settings import OrderName, SchedulerName
from semipd.core.split import PartitionMode, Split
from semipd.devices.fake import FakeDevice


def meddle(rng: random.Random) -> list[Inbound]:
    """What operators may do to a running engine, sense and nonsense."""
    if rng.random() < 0.3:
        targets = {"ttft_ms": rng.choice([0.0, 1.0, 20.0, 1e4]), "tpot_ms": rng.choice([1.0, 1.5, 3.0, 50.0])}
        return [SetSlo(0, targets, "meddler")]
    modes: list[PartitionMode] = ["auto", "fixed", "fixed", "off"]
    mode = rng.choice(modes)
    expires_s = rng.choice([None, 0.001, 0.02]) if mode != "auto" else None
    units = rng.randint(0, 16) if mode == "fixed" else None
    wish = SetPartition(0, mode, "meddler", "soak", units, None, expires_s, dry_run=rng.random() < 0.2)
    return [wish] * rng.choice([1, 1, 2])


def soak(
    policy: SchedulerName,
    depth: int,
    seed: int,
    num_requests: int,
    check_every: int,
    *,
    block_size: int = 16,
    meddling: float = 0.0,
) -> tuple[int, set[Split]]:
    """Returns how many preemptions happened, and the splits that steps ran under. `meddling`: how likely
    an operator interferes in a turn."""
    rng = random.Random(seed)
    device = FakeDevice(
        num_blocks=1 + blocks_for(16 * rng.choice([11, 19, 59]), block_size),
        block_size=block_size,
        vocab_size=RANDOM_VOCAB,
        decode_depth=depth,
        prefill_depth=depth,
    )
    settings = default_engine_settings(
        device="fake",
        scheduler=policy,
        order=get_args(OrderName)[seed % 3],
        max_num_seqs=rng.choice([2, 8, 32]),
        prefill_chunk_tokens=rng.choice([5, 32, 128]),
        step_token_budget=rng.choice([40, 128]),
        prefill_units=rng.choice([0, 4, 15]),
        partition_policy=rng.choice(["predictive", "paper"]),
        merge_tokens=rng.choice([0, 40, 128]),
        slo_tpot_ms=rng.choice([1.2, 2.0, 50.0]),
        slo_ttft_ms=rng.choice([5.0, 500.0]),
    )
    run = Run(device, settings, check=False)
    requests: dict[SeqId, Request] = {}
    cancelled: set[SeqId] = set()
    turn = 0
    while len(requests) < num_requests or not run.coordinator.scheduler.idle:
        inbox: list[Inbound] = []
        while len(requests) < num_requests and rng.random() < 0.4:
            r = random_request(rng, len(requests) + 1, run.now_ns)
            requests[r.seq] = r
            inbox.append(Submit(r))
        if requests and rng.random() < 0.02:
            seq = rng.choice(list(run.coordinator.scheduler.sequences) or [SeqId(1)])
            cancelled.add(seq)
            inbox.append(Cancel(seq))
        if rng.random() < meddling:
            inbox += meddle(rng)
        run.tick(inbox)
        if turn % check_every == 0:
            run.coordinator.check_integrity()
        turn += 1
    for r in requests.values():
        expected, got = run.expected(r), run.tokens.get(r.seq, [])
        finished = run.finished[r.seq]
        if finished.reason == "cancelled":
            assert r.seq in cancelled
            assert got == expected[: len(got)]
        else:
            assert got == expected
            stopped = expected[-1] in r.params.stop_token_ids and len(expected) >= r.params.min_tokens
            assert finished.reason == ("stop" if stopped else "length")
    run.coordinator.check_integrity()
    assert run.coordinator.scheduler.memory.pool.num_free == device.info.num_blocks - 1
    for state in (run.coordinator.prefill, run.coordinator.decode):
        assert not state.residents
        assert not state.inflight
    splits = {Split(*cast(list[int], e.data["to"])) for e in run.events if e.kind == "split_changed"}
    return run.coordinator.scheduler.num_preemptions, splits


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["semipd", "chunked", "prefill-first"])
def test_random_requests(policy: SchedulerName, depth: int) -> None:
    """Integrity is checked in every turn."""
    num_preemptions = sum(
        soak(policy, depth, seed, 210, check_every=1, block_size=block_size)[0]
        for seed, block_size in enumerate((16, 64))
    )
    print(f"{policy}, depth {depth}: 420 requests, {num_preemptions} preemptions, 0 deviations")
    assert num_preemptions > 5, "the load was too easy"


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "seeds",
    [range(100, 104), pytest.param(range(104, 112), marks=pytest.mark.soak)],
    ids=["seeds", "more-seeds"],
)
def test_operators_who_meddle_all_the_time_change_no_token(depth: int, seeds: range) -> None:
    """Overrides, expiries, merged steps on and off, changing targets, between and during steps."""
    num_preemptions, splits = 0, set[Split]()
    for seed in seeds:
        preempted, seen = soak("semipd", depth, seed, 150, check_every=1, meddling=0.15)
        num_preemptions += preempted
        splits |= seen
    assert num_preemptions > 20, "the load was too easy"
    assert len(splits) == 17, "some split was never used"


@pytest.mark.soak
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["semipd", "chunked", "prefill-first"])
def test_100_000_random_requests(policy: SchedulerName, depth: int) -> None:
    """Other seeds than above; integrity in every eighth turn."""
    num_preemptions = sum(soak(policy, depth, 1000 + seed, 1000, check_every=8)[0] for seed in range(17))
    print(f"{policy}, depth {depth}: 17,000 requests, {num_preemptions} preemptions, 0 deviations")
    assert num_preemptions > 100, "the load was too easy"
