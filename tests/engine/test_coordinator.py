"""The coordinator on the fake device: exact equality with an undisturbed run, whatever happens meanwhile."""

import random
from typing import Any

import pytest
from support.fake_engine import Run, request, submit

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, PromptLogprobs, Submit
from semipd.core.plan import StepPlan
from semipd.core.request import SeqId
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.split import LaneName, Split
from semipd.devices.fake import FakeDevice, FakeLane, default_latency
from semipd.sched import limits, outbox

POLICIES: tuple[SchedulerName, ...] = ("semipd", "chunked", "prefill-first")


def settings(policy: SchedulerName = "semipd", **kwargs: Any) -> EngineSettings:
    return default_engine_settings(device="fake", scheduler=policy, **kwargs)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_equal_an_undisturbed_run(policy: SchedulerName, depth: int) -> None:
    run = Run(FakeDevice(decode_depth=depth, prefill_depth=depth), settings(policy, prefill_chunk_tokens=7))
    requests = [request(i, [i, 5, 9, *range(3 * i)], max_tokens=1 + 7 * i) for i in range(1, 9)]
    run.tick([Submit(r) for r in requests])
    run.drain()
    for r in requests:
        assert run.tokens[r.seq] == run.expected(r)
        assert run.finished[r.seq].reason == "length"
    assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1


def prefill_segments(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int, int]]]:
    """(sequence, start, length) of the segments of each prefill step, filled while runs go on."""
    steps = list[list[tuple[int, int, int]]]()
    launch = FakeLane.launch

    def noting(lane: FakeLane, plan: StepPlan, now_ns: int) -> None:
        if lane.name == "prefill":
            steps.append([(s.seq, s.start, s.length) for s in plan.segments])
        launch(lane, plan, now_ns)

    monkeypatch.setattr(FakeLane, "launch", noting)
    return steps


def test_a_lane_that_computes_gets_only_whole_chunks_of_the_prompt_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(FakeDevice(prefill_depth=2), settings(prefill_chunk_tokens=16, merge_tokens=0))
    steps = prefill_segments(monkeypatch)
    run.tick([submit(1, list(range(40)), max_tokens=2), submit(2, list(range(50, 90)), max_tokens=2)])
    assert len(run.coordinator.prefill.inflight) == 1
    run.tick()
    # The rest of the first prompt would leave room for the second: that is decided when the lane is free.
    assert steps == [[(1, 0, 16)], [(1, 16, 16)]]
    run.drain()
    assert steps[2] == [(1, 32, 8), (2, 0, 8)]


@pytest.mark.parametrize("seed", range(6))
def test_depth_changes_no_chunk(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes that the prompts share are found as well as without it."""
    rng = random.Random(seed)
    prompts = [
        [7] * rng.randrange(60) + [rng.randrange(90) for _ in range(rng.randrange(1, 90))] for _ in range(8)
    ]
    found = []
    for depth in (1, 2):
        chunk_tokens = 16 + 8 * (seed % 3)
        run = Run(
            FakeDevice(prefill_depth=depth), settings(prefill_chunk_tokens=chunk_tokens, merge_tokens=0)
        )
        steps = prefill_segments(monkeypatch)
        run.tick([submit(idx, prompt, max_tokens=1) for idx, prompt in enumerate(prompts, 1)])
        run.drain()
        found.append((steps, run.tokens))
        monkeypatch.undo()
    assert found[0] == found[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_stop_tokens_end_a_request(policy: SchedulerName) -> None:
    run = Run(FakeDevice(vocab_size=20), settings(policy))
    r = request(1, [1, 2, 3], max_tokens=500, stop_token_ids=(7,), min_tokens=3)
    run.tick([Submit(r)])
    run.drain()
    expected = run.expected(r)
    assert expected[-1] == 7
    assert run.tokens[r.seq] == expected
    assert (run.finished[r.seq].reason, run.finished[r.seq].stop_token) == ("stop", 7)


def test_events_tell_the_life_of_a_request() -> None:
    run = Run(FakeDevice(), settings())
    run.tick([submit(1, list(range(40)), max_tokens=3)])
    run.drain()
    run.tick([submit(2, list(range(40)), max_tokens=3)])
    run.drain()
    life = [(e.kind, e.data.get("cached_tokens")) for e in run.events if e.seq == 2]
    begun = [("queued", None), ("to_background", None), ("admitted", 32)]
    assert life == [*begun, ("first_token", None), ("finished", None)]
    assert run.finished[SeqId(2)].cached_tokens == 32


@pytest.mark.parametrize("policy", POLICIES)
def test_full_pool_preempts_the_latest_and_loses_nothing(policy: SchedulerName) -> None:
    run = Run(FakeDevice(num_blocks=12), settings(policy, prefill_chunk_tokens=16, step_token_budget=16))
    requests = [request(i, [i] * 20, max_tokens=100, arrival_ns=i) for i in range(1, 5)]
    run.tick([Submit(r) for r in requests])
    run.drain()
    preempted = {e.seq for e in run.events if e.kind == "preempted"}
    assert preempted
    assert 1 not in preempted
    for r in requests:
        assert run.tokens[r.seq] == run.expected(r)
    assert run.coordinator.scheduler.memory.pool.num_free == 11


def test_a_request_that_never_fits_is_answered_with_the_arithmetic() -> None:
    run = Run(FakeDevice(num_blocks=4), settings())
    run.tick([submit(1, [1] * 20, max_tokens=100)])
    answer = run.finished[SeqId(1)]
    assert answer.reason == "error"
    assert "120 tokens, which need 8 KV blocks" in answer.message
    assert "pool has 3" in answer.message


@pytest.mark.parametrize("policy", POLICIES)
def test_cancel_in_every_phase_returns_the_blocks(policy: SchedulerName) -> None:
    for moment in range(12):
        run = Run(FakeDevice(decode_depth=2), settings(policy, prefill_chunk_tokens=8, step_token_budget=8))
        run.tick([submit(1, [1] * 30, max_tokens=5), submit(2, [2] * 30, max_tokens=5)])
        for _ in range(moment):
            run.tick()
        run.tick([Cancel(SeqId(1)), Cancel(SeqId(1))])
        run.drain()
        assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1
        assert run.tokens[SeqId(2)] == run.expected(request(2, [2] * 30, max_tokens=5))
        assert run.finished[SeqId(1)].reason in ("cancelled", "length")


def test_resumed_request_continues_where_it_was() -> None:
    run = Run(FakeDevice(), settings())
    r = request(1, list(range(20)), max_tokens=30)
    expected = run.expected(r)
    for done in (0, 1, 17, 29, 30):
        resumed = type(r)(SeqId(100 + done), "again", r.prompt, r.params, 0, emitted=tuple(expected[:done]))
        run.tick([Submit(resumed)])
        run.drain()
        assert run.tokens.get(resumed.seq, []) == expected[done:]
        assert run.finished[resumed.seq].reason == "length"


def test_namespaces_do_not_share_prefixes() -> None:
    run = Run(FakeDevice(), settings())
    for seq, namespace in ((1, "a"), (2, "b"), (3, "a")):
        r = request(seq, list(range(64)), max_tokens=2)
        run.tick([Submit(type(r)(r.seq, "x", r.prompt, r.params, 0, namespace=namespace))])
        run.drain()
    assert [run.finished[SeqId(s)].cached_tokens for s in (1, 2, 3)] == [0, 0, 48]


def test_prompt_logprobs_cover_the_prompt_once_despite_hits_and_preemption() -> None:
    run = Run(FakeDevice(num_blocks=14), settings(prefill_chunk_tokens=8))
    wanted = request(9, list(range(50)), max_tokens=60, arrival_ns=9, prompt_logprobs=2, logprobs=1)
    run.tick([submit(1, list(range(50)), max_tokens=110, arrival_ns=1)])
    for _ in range(8):
        run.tick()
    run.tick([Submit(wanted)])
    run.drain()
    assert any(e.kind == "preempted" and e.seq == 9 for e in run.events)
    entries = run.prompt_logprobs(9)
    assert [entry.token_id for entry in entries] == wanted.prompt[1:]
    assert run.tokens[wanted.seq] == run.expected(wanted)


def test_the_whole_vocabulary_comes_in_bounded_steps_and_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is bounded by the one that wants most of it, so that a lane's buffers are."""
    monkeypatch.setattr(limits, "MAX_STEP_ALTERNATIVES", 1000)
    monkeypatch.setattr(outbox, "MESSAGE_ALTERNATIVES", 250)
    steps = []

    def latency(lane: LaneName, plan: StepPlan) -> int:
        steps.append([segment for segment in plan.segments if segment.prompt_logprobs is not None])
        return default_latency(lane, plan)

    for policy in POLICIES:
        run = Run(FakeDevice(vocab_size=100, latency=latency), settings(policy))
        wanted: dict[int, int | None] = {1: 100, 2: 3, 3: 100, 4: None, 5: 0}
        requests = [
            request(seq, [seq, *range(40)], max_tokens=3, prompt_logprobs=count)
            for seq, count in wanted.items()
        ]
        run.tick([Submit(r) for r in requests])
        run.drain()
        messages = [m for m in run.messages if isinstance(m, PromptLogprobs)]
        assert max(len(m.entries) for m in messages if wanted[m.seq] == 100) == 2
        for r in requests:
            assert [entry.token_id for entry in run.prompt_logprobs(r.seq)] == (
                r.prompt[1:] if wanted[r.seq] is not None else []
            )
            assert run.tokens[r.seq] == run.expected(r)
    for segments in filter(None, steps):
        rows = sum(segment.length for segment in segments)
        assert rows == 1 or rows * max(1, *(s.prompt_logprobs or 0 for s in segments), 0) <= 1000


def test_a_vocabulary_beyond_the_bound_of_a_step_takes_a_step_for_each_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_STEP_ALTERNATIVES", 50)
    run = Run(FakeDevice(vocab_size=100), settings())
    wanted = [request(seq, list(range(9)), max_tokens=2, prompt_logprobs=100) for seq in (1, 2)]
    run.tick([Submit(r) for r in wanted])
    run.drain()
    for r in wanted:
        assert [len(entry.top) for entry in run.prompt_logprobs(r.seq)] == [100] * 8


def test_both_lanes_work_at_once_and_lend_when_alone() -> None:
    seen: set[Split] = set()

    def latency(lane: LaneName, plan: StepPlan) -> int:
        seen.add(plan.split)
        return default_latency(lane, plan)

    run = Run(FakeDevice(latency=latency), settings(prefill_units=12, prefill_chunk_tokens=32))
    run.tick([submit(1, [1] * 64, max_tokens=40)])
    for _ in range(6):
        run.tick()
    run.tick([submit(2, [2] * 200, max_tokens=4)])
    overlapped = False
    while run.tick():
        prefill, decode = run.coordinator.prefill, run.coordinator.decode
        overlapped |= bool(prefill.inflight) and bool(decode.inflight)
    assert overlapped
    assert seen == {(16, 0), (12, 4), (0, 16)}


def test_lanes_never_hold_the_same_units() -> None:
    run = Run(FakeDevice(decode_depth=2), settings(prefill_chunk_tokens=16))
    rng = random.Random(3)
    for seq in range(1, 60):
        run.tick([submit(seq, [seq] * rng.randint(1, 60), max_tokens=rng.randint(1, 20))])
        prefill = [f.plan.split.prefill_units for f in run.coordinator.prefill.inflight]
        decode = [f.plan.split.decode_units for f in run.coordinator.decode.inflight]
        assert max(prefill, default=0) + max(decode, default=0) <= 16
    run.drain()


def test_rebuild_equals_deltas() -> None:
    """A lane rebuilt from the coordinator's view in mid-run continues with the same tokens."""
    run = Run(FakeDevice(), settings(prefill_chunk_tokens=16))
    requests = [request(i, [i] * (5 * i), max_tokens=40) for i in range(1, 6)]
    run.tick([Submit(r) for r in requests])
    num_rebuilds = 0
    while run.tick():
        for state in (run.coordinator.decode, run.coordinator.prefill):
            if not state.inflight:
                state.rebuild(run.coordinator.scheduler.sequences)
                num_rebuilds += 1
    assert num_rebuilds > 5
    for r in requests:
        assert run.tokens[r.seq] == run.expected(r)
