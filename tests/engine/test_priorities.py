"""Requests without targets: behind the others in the queue, first to give up blocks, never starved."""

import dataclasses
import math

import msgpack
import pytest
from support.fake_engine import Run, request

from semipd.config.config import default_engine_settings
from semipd.core.messages import Submit
from semipd.core.plan import StepPlan
from semipd.core.request import Request
from semipd.core.settings import SchedulerName
from semipd.core.slo import NO_TARGETS, Targets
from semipd.devices.fake import FakeDevice, FakeLane
from semipd.engine.work import work_at_hand
from semipd.sched.order import BACKGROUND_EVERY
from semipd.wire.engine_link import request_from_wire, request_to_wire

SCHEDULERS: tuple[SchedulerName, ...] = ("semipd", "chunked", "prefill-first")


def timely(seq: int, prompt: list[int], *, arrival_ns: int, ttft_ms: float = 1e6, **params: int) -> Request:
    """With a target for its first token."""
    targets = Targets(ttft_ms=ttft_ms)
    return dataclasses.replace(request(seq, prompt, arrival_ns=arrival_ns, **params), targets=targets)


def events(run: Run, kind: str) -> list[int]:
    return [event.seq for event in run.events if event.kind == kind and event.seq is not None]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_who_has_no_target_lets_the_others_pass_but_gets_its_share_of_the_steps(
    scheduler: SchedulerName,
) -> None:
    """One prompt a step."""
    run = Run(FakeDevice(), default_engine_settings(
        device="fake", scheduler=scheduler, prefill_chunk_tokens=20, step_token_budget=20, merge_tokens=0,
    ))  # fmt: skip
    waiting = [request(seq, [seq] * 20, arrival_ns=seq, max_tokens=1) for seq in (1, 2)]
    waiting += [timely(seq, [seq] * 20, arrival_ns=seq, max_tokens=1) for seq in range(3, 30)]
    run.tick([Submit(r) for r in waiting])
    run.drain()
    order = events(run, "admitted")
    assert order.index(1) == BACKGROUND_EVERY - 1
    assert order.index(2) == 2 * BACKGROUND_EVERY - 1
    assert [seq for seq in order if seq > 2] == list(range(3, 30))
    assert all(run.tokens[r.seq] == run.expected(r) for r in waiting)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_long_prompt_is_overtaken_between_two_chunks_and_loses_nothing(
    scheduler: SchedulerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = list[tuple[int, int, int]]()
    launch = FakeLane.launch

    def noting(lane: FakeLane, plan: StepPlan, now_ns: int) -> None:
        segments.extend((s.seq, s.start, s.length) for s in plan.segments)
        launch(lane, plan, now_ns)

    monkeypatch.setattr(FakeLane, "launch", noting)
    run = Run(FakeDevice(prefill_depth=2), default_engine_settings(
        device="fake", scheduler=scheduler, prefill_chunk_tokens=32, step_token_budget=32, merge_tokens=0,
    ))  # fmt: skip
    long, urgent = timely(1, list(range(200)), arrival_ns=0), timely(2, [7] * 32, arrival_ns=1, ttft_ms=50)
    run.tick([Submit(long)])
    run.tick([Submit(urgent)])
    run.drain()
    assert 1 <= segments.index((2, 0, 32)) <= 3, segments
    chunks = [(start, length) for seq, start, length in segments if seq == 1]
    assert [start for start, _ in chunks] == [sum(n for _, n in chunks[:i]) for i in range(len(chunks))]
    assert sum(length for _, length in chunks) == 200, "no chunk is lost"
    assert run.coordinator.scheduler.num_preemptions == 0
    assert all(run.tokens[r.seq] == run.expected(r) for r in (long, urgent))


def test_prompts_that_are_begun_hold_at_most_half_the_pool_before_one_more_is_placed() -> None:
    run = Run(FakeDevice(num_blocks=41), default_engine_settings(
        device="fake", prefill_chunk_tokens=16, merge_tokens=0,
    ))  # fmt: skip
    arriving = [
        timely(seq, [seq] * 128, arrival_ns=seq, ttft_ms=1000 - seq, max_tokens=1) for seq in (1, 2, 3)
    ]
    most = 0
    for r in arriving:
        run.tick([Submit(r)])
        run.tick()
    while run.tick():
        begun = [s for s in run.coordinator.scheduler.prefilling if s.tokens_left]
        most = max(most, sum(len(s.tokens) for s in begun))
    assert events(run, "admitted")[:2] == [1, 2], "the later ones are due earlier"
    assert most == 256
    assert len(run.finished) == 3


def test_a_request_of_the_background_is_preempted_first_though_it_came_first() -> None:
    run = Run(FakeDevice(num_blocks=14), default_engine_settings(device="fake", prefill_chunk_tokens=16))
    oldest = timely(1, [1] * 20, arrival_ns=1, max_tokens=60)
    background = request(2, [2] * 20, arrival_ns=2, max_tokens=60)
    others = [timely(seq, [seq] * 20, arrival_ns=seq, max_tokens=60) for seq in (3, 4)]
    run.tick([Submit(r) for r in (oldest, background)])
    for _ in range(8):
        run.tick()
    run.tick([Submit(r) for r in others])
    run.drain()
    assert events(run, "preempted")[0] == 2
    assert all(run.tokens[r.seq] == run.expected(r) for r in (oldest, background, *others))


def test_the_oldest_wait_is_of_the_oldest_not_of_the_head() -> None:
    run = Run(FakeDevice(), default_engine_settings(device="fake", max_num_seqs=1))
    blocker = timely(1, [1], arrival_ns=1)
    run.tick([Submit(r) for r in (blocker, request(2, [2], arrival_ns=2), timely(3, [3], arrival_ns=3))])
    queue = run.coordinator.scheduler.queue
    assert [prompt.seq for prompt in queue.in_order()] == [3, 2]
    assert queue.oldest_arrival_ns() == 2


@pytest.mark.parametrize("targets", [NO_TARGETS, Targets(300, 120.5, None, 40)])
def test_the_terms_survive_the_link(targets: Targets) -> None:
    sent = dataclasses.replace(
        request(1, [1], arrival_ns=1), service_class="reports", targets=targets, accept_late=True
    )
    wire = msgpack.unpackb(msgpack.packb(request_to_wire(sent)))
    assert request_from_wire(wire) == sent


def test_a_target_for_the_first_token_grows_with_what_is_not_cached() -> None:
    growing = Targets(ttft_ms=300, ttft_ms_per_1k_tokens=200)
    assert [growing.ttft_limit_ms(uncached) for uncached in (0, 500, 16000)] == [300, 400, 3500]
    assert growing.due_ns(7_000_000, 500) == 407_000_000
    assert NO_TARGETS.ttft_limit_ms(16000) == math.inf
    assert NO_TARGETS.due_ns(7, 16000) is None


def test_policies_see_prompts_in_the_order_in_which_they_will_be_computed() -> None:
    run = Run(FakeDevice(), default_engine_settings(device="fake", max_num_seqs=1))
    running = timely(1, [1], arrival_ns=1, ttft_ms=1.0, max_tokens=50)
    prompts = [timely(2, [2], arrival_ns=2), timely(3, [3] * 40, arrival_ns=3, ttft_ms=500)]
    run.tick([Submit(r) for r in (request(4, [4], arrival_ns=0), *prompts, running)])
    c = run.coordinator
    work = work_at_hand(c.scheduler, c.prefill, c.control.models, run.now_ns)
    assert work.seqs == (3, 2, 4)
    assert [prompt.new_tokens for prompt in work.prompts] == [40, 1, 1]
    run.drain()
    assert events(run, "admitted") == [1, 3, 2, 4]
