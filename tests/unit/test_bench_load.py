"""Open and closed loops of the load generator, over made-up servers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from benchlib import report
from benchlib.load.load import LoadRun
from benchlib.load.progress import progress_line
from benchlib.load.records import Record
from benchlib.load.targets import RefusedError
from benchlib.load.workload import PlannedRequest
from benchlib.metrics import Slo, summarize

from semipd.core.errors import SemipdError

Behaviour = Callable[[Record], Awaitable[None]]


@dataclass
class Scripted:
    """A prepared request that behaves as told."""

    behave: Behaviour

    async def send(self, record: Record, start_s: float) -> None:
        await self.behave(record)


def load(
    behave: Behaviour,
    due_s: list[float | None],
    concurrency: int = 0,
    limit_s: float = 30.0,
) -> LoadRun:
    requests = [PlannedRequest(8, 2, due_s=time_s) for time_s in due_s]
    return LoadRun(requests, [Scripted(behave) for _ in requests], concurrency, limit_s)


async def answer(record: Record) -> None:
    """Two tokens, at once."""
    record.event_times_s = [record.sent_s, record.sent_s]
    record.take_usage({"prompt_tokens": 8, "completion_tokens": 2})


def outcomes(run: LoadRun) -> list[str]:
    return [record.outcome for record in sorted(run.records, key=lambda record: record.index)]


async def test_an_open_loop_waits_for_the_time_and_for_nobody() -> None:
    all_sent = asyncio.Event()

    async def wait_for_the_last(record: Record) -> None:
        if record.index == 3:
            all_sent.set()
        await all_sent.wait()
        await answer(record)

    run = load(wait_for_the_last, [0.0, 0.0, 0.03, 0.06])
    await run.run()
    assert outcomes(run) == ["ok"] * 4
    assert [record.index for record in run.records] == [0, 1, 2, 3]
    assert all((record.send_lag_s or 0) >= 0 for record in run.records)
    assert run.duration_s >= 0.06


@pytest.mark.parametrize("concurrency", [1, 3, 20])
async def test_a_closed_loop_is_full_and_never_fuller(concurrency: int) -> None:
    most = now = 0

    async def count(record: Record) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        for _ in range(record.index % 3 + 1):
            await asyncio.sleep(0)
        now -= 1
        await answer(record)

    run = load(count, [None] * 10, concurrency)
    await run.run()
    assert most == min(concurrency, 10)
    assert outcomes(run) == ["ok"] * 10
    assert all(record.due_s is None for record in run.records)


async def test_bad_ends_are_told_apart() -> None:
    async def fail(record: Record) -> None:
        match record.index:
            case 0:
                raise RefusedError("overloaded", "Later.")
            case 1:
                raise SemipdError("engine_crashed", "Gone.")
            case 2:
                raise ValueError("not JSON")
            case 3:
                await asyncio.Event().wait()
            case _:
                await answer(record)

    run = load(fail, [0.0] * 5, limit_s=0.05)
    await run.run()
    assert outcomes(run) == ["refused", "failed", "failed", "timed_out", "ok"]
    assert [record.code for record in run.records] == [
        "overloaded",
        "engine_crashed",
        "malformed_response",
        "timeout",
        "",
    ]
    summary = summarize(run.records, run.duration_s, Slo(1e9, 1e9))
    assert summary.attainment_frac == 0.2


@pytest.mark.parametrize("concurrency", [0, 2])
async def test_stopping_cancels_what_is_in_flight_and_sends_no_more(concurrency: int) -> None:
    started = asyncio.Event()

    async def hang(record: Record) -> None:
        if record.index == 1:
            started.set()
        await asyncio.Event().wait()

    due_s: list[float | None] = [None] * 4 if concurrency else [0.0, 0.0, 1e6, 1e6]
    run = load(hang, due_s, concurrency)
    running = asyncio.create_task(run.run())
    await started.wait()
    run.stop()
    await running
    assert outcomes(run) == ["cancelled", "cancelled"]
    assert run.num_in_flight == 0
    summary = summarize(run.records, run.duration_s, Slo(1, 1))
    assert summary.arrived == 0
    assert summary.errors == {}
    assert "the run was stopped before its end" in report.warnings(summary, report.generator_facts(run))


@pytest.mark.parametrize("concurrency", [0, 2])
async def test_a_bug_ends_the_run(concurrency: int) -> None:
    async def bug(record: Record) -> None:
        if record.index == 1:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError):
        await load(bug, [0.0] * 3, concurrency).run()


def line_of(run: LoadRun) -> str:
    return progress_line(run).split("] ")[1].strip()


async def test_progress() -> None:
    halfway, go_on = asyncio.Event(), asyncio.Event()

    async def pause(record: Record) -> None:
        if record.index == 0:
            raise SemipdError("x", "x")
        halfway.set()
        await go_on.wait()
        await answer(record)

    run = load(pause, [0.0, 0.0])
    assert line_of(run) == "0/2 over,   0 in flight, 0 not ok"
    running = asyncio.create_task(run.run())
    await halfway.wait()
    assert line_of(run) == "1/2 over,   1 in flight, 1 not ok"
    assert progress_line(run).startswith("[" + "#" * 15 + "." * 15 + "]")
    go_on.set()
    await running
    assert line_of(run) == "2/2 over,   0 in flight, 1 not ok"


async def test_warnings_name_what_distorts() -> None:
    run = load(answer, [0.0] * 3)
    await run.run()
    slo = Slo(100, 100)

    def found() -> str:
        facts = report.generator_facts(run) | {"loop_lag_p99_ms": 0.0}
        return "; ".join(report.warnings(summarize(run.records, 1.0, slo), facts))

    for record in run.records:
        record.sent_s, record.due_s = 1.0, 1.0
    assert found() == ""
    run.records[0].due_s = 0.5
    assert "sent late" in found()
    run.records[0].due_s = 1.0
    run.records[0].output_tokens = 5
    assert "another number of tokens" in found()
    run.records[0].event_times_s = [1.0]
    assert "a stream event brought 1.80 tokens" in found()
    run.records[1].cached_tokens = 4
    assert "give another --seed" in found()
    run.records[2].has_usage = False
    assert "had no usage" in found()
    facts = report.generator_facts(run) | {"loop_lag_p99_ms": 50.0}
    assert "woke up late" in report.warnings(summarize(run.records, 1.0, slo), facts)[0]
