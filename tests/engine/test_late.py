"""Requests that come too late: told at once, or waiting in the background; never left without a word."""

import dataclasses
from collections import Counter

import msgpack
import pytest
from support.fake_engine import Run, request

from semipd.config.config import default_engine_settings
from semipd.core.messages import ExpectedStarts, Finished, SetClass, SetSlo, Submit
from semipd.core.plan import StepPlan
from semipd.core.request import Request, SeqId
from semipd.core.settings import OrderName, SchedulerName
from semipd.core.slo import NO_TARGETS, Targets
from semipd.core.split import LaneName
from semipd.devices.fake import FakeDevice
from semipd.sched import planning
from semipd.wire.engine_link import outbound_from_wire, outbound_to_wire

MS = 1_000_000
TTFT_MS = 100.0
CASES: list[tuple[SchedulerName, OrderName, int]] = [
    ("semipd", "deadline", planning.MANY),
    ("semipd", "deadline", 5),
    ("chunked", "deadline", planning.MANY),
    ("prefill-first", "deadline", planning.MANY),
    ("chunked", "fcfs", planning.MANY),
    ("chunked", "cost", 5),
]


def slow(lane: LaneName, plan: StepPlan) -> int:
    """A millisecond for each prompt token."""
    return MS + MS * sum(segment.length for segment in plan.segments)


def late_run(scheduler: SchedulerName, order: OrderName = "deadline", max_late_s: float = 0.5) -> Run:
    """With step times known: forty short prompts have been answered."""
    run = Run(FakeDevice(latency=slow), default_engine_settings(
        device="fake", scheduler=scheduler, order=order, max_late_s=max_late_s, merge_tokens=0,
        prefill_chunk_tokens=64, step_token_budget=64,
    ))  # fmt: skip
    for seq in range(1, 41):
        run.tick([Submit(request(seq, [seq] * (1 + seq % 9), max_tokens=3, arrival_ns=run.now_ns))])
        run.drain()
    run.events.clear()
    run.messages.clear()
    return run


def timely(seq: int, run: Run, *, tokens: int = 50, accept_late: bool = False) -> Request:
    asked = request(seq, [seq] * tokens, max_tokens=1, arrival_ns=run.now_ns)
    return dataclasses.replace(asked, targets=Targets(ttft_ms=TTFT_MS), accept_late=accept_late)


def kinds(run: Run) -> Counter[str]:
    return Counter(event.kind for event in run.events)


@pytest.mark.parametrize(("scheduler", "order", "many"), CASES)
def test_a_burst_is_told_at_once_how_many_of_it_are_too_many(
    scheduler: SchedulerName, order: OrderName, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty prompts of 50 ms each, due after 100 ms: those that would come 500 ms later than that are refused
    within the first few steps. Who stays gets an answer by then."""
    monkeypatch.setattr(planning, "MANY", many)
    run = late_run(scheduler, order)
    burst = [timely(seq, run) for seq in range(100, 140)]
    began_ns = run.now_ns
    run.tick([Submit(r) for r in burst])
    told_ns: dict[int, int] = {}
    for _ in range(2000):
        for r in burst:
            if r.seq in run.finished and r.seq not in told_ns:
                told_ns[r.seq] = run.now_ns
        if not run.tick():
            break
    late = {seq: run.finished[seq] for seq in told_ns if run.finished[SeqId(seq)].code == "late"}
    assert 20 <= len(late) <= 34, len(late)
    assert max(told_ns.values()) - began_ns <= (TTFT_MS + 700) * MS
    at_once = [seq for seq in late if told_ns[seq] - began_ns <= 150 * MS]
    assert len(at_once) >= 0.7 * len(late)
    assert all(1 <= (told.retry_after_s or 0) <= 60 for told in late.values())
    assert [e.data["code"] for e in run.events if e.kind == "refused"] == ["late"] * len(late)
    assert all(run.tokens[r.seq] == run.expected(r) for r in burst if r.seq not in late)
    assert not any(seq in run.tokens for seq in late)


def test_who_accepts_to_be_late_waits_in_the_background_and_is_told_when_it_is_begun() -> None:
    run = late_run("semipd")
    burst = [timely(seq, run, accept_late=True) for seq in range(100, 140)]
    run.tick([Submit(r) for r in burst])
    while not (found := [message for message in run.messages if isinstance(message, ExpectedStarts)]):
        run.tick()
    told = found[0]
    assert len(told.seqs) > 10
    assert list(told.at_ns) == sorted(told.at_ns)
    assert outbound_from_wire(msgpack.unpackb(msgpack.packb(outbound_to_wire(told)))) == told
    run.drain()
    begun_ns = {event.seq: event.at_ns for event in run.events if event.kind == "admitted"}
    errors = [abs(begun_ns[seq] - at_ns) for seq, at_ns in zip(told.seqs, told.at_ns, strict=True)]
    assert max(errors) < 300 * MS, "of 2 s"
    assert all(run.tokens[r.seq] == run.expected(r) for r in burst)
    gone = [e for e in run.events if e.kind == "to_background"]
    assert {e.data["reason"] for e in gone} == {"late"}
    assert kinds(run)["refused"] == 0


def test_nobody_waits_longer_than_the_setting_says_whatever_was_predicted() -> None:
    """A step takes 10 s: nothing is learned, and no forecast speaks against waiting."""
    run = Run(FakeDevice(latency=lambda lane, plan: 10_000 * MS), default_engine_settings(
        device="fake", max_late_s=2.0, prefill_chunk_tokens=20,
    ))  # fmt: skip
    waiting = (timely(2, run), timely(3, run, accept_late=True))
    run.tick([Submit(timely(1, run, tokens=20)), *(Submit(r) for r in waiting)])
    while 2 not in run.finished:
        run.tick()
    assert (TTFT_MS + 2_000) * MS < run.now_ns < (TTFT_MS + 3_100) * MS
    assert run.finished[2].code == "late"
    run.drain()
    assert 3 in run.tokens


def test_who_comes_just_after_a_plan_is_looked_at_as_soon_as_another_may_be_made() -> None:
    """Whatever runs for how long."""
    settings = default_engine_settings(device="fake", prefill_chunk_tokens=50)
    run = Run(FakeDevice(latency=lambda lane, plan: 10_000 * MS), settings)
    coordinator = run.coordinator
    coordinator.tick(0, [Submit(timely(seq, run)) for seq in (1, 2)])
    assert coordinator.tick(MS).wake_at_ns == 501 * MS
    wake_at_ns = coordinator.tick(2 * MS, [Submit(timely(3, run))]).wake_at_ns
    assert wake_at_ns is not None
    assert wake_at_ns <= 6 * MS


def test_plans_that_are_due_all_the_time_put_no_forecast_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is always late, with more requests than one turn pays for."""
    monkeypatch.setattr(planning, "MANY", 5)
    run = Run(FakeDevice(latency=lambda lane, plan: 10_000 * MS), default_engine_settings(
        device="fake", max_late_s=0.5, prefill_chunk_tokens=20,
    ))  # fmt: skip
    run.coordinator.tick(0, [Submit(timely(seq, run, tokens=20)) for seq in range(1, 20)])
    told = [
        message
        for now_ms in range(50, 900, 50)
        for message in run.coordinator.tick(now_ms * MS).outbox
        if isinstance(message, Finished)
    ]
    assert [message.code for message in told] == ["late"] * 18


def test_a_late_answer_keeps_its_time_to_come_again_over_the_link() -> None:
    sent = Finished(SeqId(1), "error", code="late", message="m", hint="h", retry_after_s=7.5)
    assert outbound_from_wire(msgpack.unpackb(msgpack.packb(outbound_to_wire(sent)))) == sent


def test_new_targets_of_a_class_give_those_that_wait_a_new_place() -> None:
    run = Run(FakeDevice(latency=slow), default_engine_settings(device="fake", max_num_seqs=1))
    waiting = [timely(seq, run) for seq in (2, 3)]
    waiting[1] = dataclasses.replace(waiting[1], service_class="batch", targets=NO_TARGETS)
    running = dataclasses.replace(request(1, [1], max_tokens=50), targets=Targets(ttft_ms=1.0))
    run.tick([Submit(running), *(Submit(r) for r in waiting)])
    queue = run.coordinator.scheduler.queue
    assert [prompt.seq for prompt in queue.in_order()] == [2, 3]
    run.tick([SetClass(1, "batch", NO_TARGETS, Targets(ttft_ms=10.0), "test", "")])
    assert [prompt.seq for prompt in queue.in_order()] == [3, 2]
    run.tick([SetSlo(2, {"ttft_ms": 5.0}, "test")])
    assert [prompt.seq for prompt in queue.in_order()] == [3, 2], "2 has brought its own"
    run.drain()
