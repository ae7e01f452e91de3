"""The demo is a daemon in every key, and its numbers agree with each other."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from semipd_top.demo import DemoSource, DemoWorld
from semipd_top.picture.picture import Monitor
from semipd_top.sources.contract import Seen
from support.daemon import Running, running
from support.eventually import eventually
from support.shapes import by_kind, differences, shape_of

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.events import EventRow
from semipd.core.state.daemon import StateDocument
from semipd.core.state.partition import PartitionDocument
from semipd.core.state.requests import RequestRow
from semipd.daemon.requests.options import Limits

BEGAN_S = 1_790_000_000.0
TOLERANCE = 1e-6
FREE = ("device.memory", "device.stats", "refused", "requests.totals", "partition.change.requested")
SMALL_POOL = default_engine_settings(device="fake", max_num_blocks=64)


def world() -> DemoWorld:
    return DemoWorld(7, BEGAN_S)


def watched(seconds: float, step_s: float = 1.0) -> list[Seen]:
    demo = world()
    return [demo.advance(step_s) for _ in range(int(seconds / step_s))]


@pytest.fixture(scope="module")
def first_day() -> list[Seen]:
    return watched(420)


# ---- like a daemon ---------------------------------------------------------------------------------


async def generate(client: AsyncClient, num_prompt: int, num_output: int) -> None:
    async for _ in client.generate([5] * num_prompt, max_tokens=num_output, ignore_eos=True):
        pass


async def whole_life(daemon: Running) -> AsyncIterator[StateDocument]:
    """States of a real daemon: its engine starts, works, is overridden, drains, dies and comes back."""
    starting = asyncio.create_task(daemon.services.supervisor.start())
    while not starting.done():
        yield await daemon.services.state(0)
        await asyncio.sleep(0.005)
    await starting
    async with await AsyncClient.connect(daemon.socket_path) as client:
        for _ in range(3):
            work = asyncio.gather(*(generate(client, 200 + 9 * idx, 60) for idx in range(16)))
            while not work.done():
                yield await daemon.services.state(0)
                await asyncio.sleep(0.002)
            await work
        await client.set_partition(prefill_units=7, expires_s=60.0, reason="why not")
        await client.set_slo(ttft_ms=300.0)
        long = asyncio.create_task(generate(client, 100, 400))
        await daemon.engine_says(lambda status: status["requests"]["decoding"])
        await client.drain(reason="new weights")
        with pytest.raises(SemipdError):
            await generate(client, 4, 4)
        yield await daemon.services.state(0)
        await client.drain(cancel=True)
        daemon.services.supervisor.kill()
        await eventually(lambda: daemon.services.supervisor.state != "ready", "the engine is dead")
        while daemon.services.supervisor.state != "ready":
            yield await daemon.services.state(0)
            await asyncio.sleep(0.005)
        await long
        yield await daemon.services.state(0)


class Real:
    """What a real daemon said."""

    states: list[dict[str, Any]]
    events: list[EventRow]
    rows: list[RequestRow]
    details: list[RequestRow]
    partition: PartitionDocument


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return asyncio.run(look_at_a_daemon(tmp_path_factory.mktemp("real")))


async def look_at_a_daemon(folder: Path) -> Real:
    found = Real()
    settings = {"supervision.backoff_s": 0.2}
    async with running(folder, start=False, fake=SMALL_POOL, settings=settings) as daemon:
        supervisor, generation = daemon.services.supervisor, daemon.services.generation
        supervisor.on_ready.append(lambda ready: generation.engine_is_ready(Limits.of(ready.info)))
        # as it goes over the wire: without tuples
        found.states = [json.loads(json.dumps(state)) async for state in whole_life(daemon)]
        journal = daemon.services.history.journal
        found.events = [journal.to_wire(entry) for entry in journal.read(0, 4096).entries]
        async with await AsyncClient.connect(daemon.socket_path) as client:
            found.rows = await client.requests(limit=100)
            found.details = await client.requests(request_id=found.rows[0]["id"])
            found.partition = await client.partition()
    return found


def test_state_frames_have_the_keys_of_a_daemons(real: Real, first_day: list[Seen]) -> None:
    model = shape_of(real.states, FREE)
    for path in ("engine.phase.name", "engine.why", "kv.holders[].id", "partition.decision.split[]"):
        assert model[path] - {"null"}, f"the daemon never said {path}: nothing is compared"
    assert not differences(shape_of([seen.frame.state for seen in first_day], FREE), model)
    keys = {tuple(sorted(state)) for state in real.states}
    assert {tuple(sorted(seen.frame.state)) for seen in first_day} == keys


def test_events_have_the_data_of_a_daemons(real: Real, first_day: list[Seen]) -> None:
    said, made_up = by_kind(real.events), by_kind([e for seen in first_day for e in seen.frame.events])
    compared = set(said) & set(made_up)
    assert compared >= {"admitted", "drain_changed", "engine_died", "engine_restarted", "finished"}
    assert compared >= {"partition_changed", "preempted", "refused", "request_resumed", "split_changed"}
    for kind in compared:
        assert not differences(shape_of(made_up[kind]), shape_of(said[kind])), kind
    assert set(made_up) - compared <= {"slow_step"}


def test_a_slow_step_is_told_as_documented(first_day: list[Seen]) -> None:
    docs = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    [documented] = [line for line in docs.splitlines() if line.startswith("| `slow_step` |")]
    [event] = by_kind([e for seen in first_day for e in seen.frame.events])["slow_step"]
    names = documented.partition("at least 20 ms:")[2].partition(".")[0]
    assert set(event["data"]) == set(names.replace("`", "").replace(" ", "").split(","))
    assert event["data"]["busy_ms"] > 4 * event["data"]["predicted_ms"]


async def test_rows_and_details_have_the_keys_of_a_daemons(real: Real, first_day: list[Seen]) -> None:
    rows = [row for seen in first_day for row in seen.requests or ()]
    assert not differences(shape_of(rows), shape_of(real.rows))
    demo = world()
    for _ in range(60):
        demo.advance(1.0)
    [detail] = await demo.operator.requests(request_id=demo.history.recent[-1].id)
    assert set(detail) == set(real.details[0])
    assert set(detail["events"][0]) == set(real.details[0]["events"][0])


async def test_partition_answers_have_the_keys_of_a_daemons(real: Real) -> None:
    demo = world()
    for _ in range(90):
        demo.advance(1.0)
    free = ("change.requested", "history[].requested")
    made_up = await demo.operator.partition()
    assert not differences(shape_of([made_up], free), shape_of([real.partition], free))
    assert set(made_up) == set(real.partition)


# ---- numbers that agree ----------------------------------------------------------------------------


def test_equal_seeds_give_equal_frames_and_others_do_not() -> None:
    assert watched(100, 0.5) == watched(100, 0.5)
    other = DemoWorld(8, BEGAN_S)
    assert [other.advance(0.5) for _ in range(200)] != watched(100, 0.5)


def test_numbers_agree_for_an_hour() -> None:
    before: StateDocument | None = None
    finished: dict[int, Any] = {}
    events: list[EventRow] = []
    for seen in watched(3600):
        state = seen.frame.state
        assert seen.requests is not None
        events += seen.frame.events
        check_requests(state, seen.requests)
        for row in seen.requests:
            check_row(row)
            if row["state"] == "finished":
                assert finished.setdefault(row["seq"], row) == row
        if state["kv"] is not None:
            check_engine(state, seen.requests)
            check_counters(state, before)
        before = state if state["kv"] is not None else None
    check_events(events, finished)
    assert before is not None
    assert sum(before["refused"].values()) == len(by_kind(events)["refused"])


def check_requests(state: Any, rows: Any) -> None:
    requests = state["requests"]
    totals = dict(requests["totals"])
    live = [row for row in rows if row["state"] != "finished"]
    assert totals.pop("admitted", 0) == requests["live"] + sum(totals.values())
    assert len(live) == requests["live"] == state["drain"]["awaited"]
    if state["kv"] is None:
        assert requests["held"] == requests["live"]
        assert not sum(row["blocks"] for row in live)
    else:
        assert requests["held"] == 0
        for name in ("waiting", "prefilling", "decoding"):
            assert requests[name] == sum(row["state"] == name for row in live)


def check_engine(state: Any, rows: Any) -> None:
    kv, partition = state["kv"], state["partition"]
    assert kv["used_blocks"] + kv["free_blocks"] == kv["total_blocks"]
    assert 0 <= kv["cached_blocks"] <= kv["free_blocks"]
    assert kv["used_blocks"] == sum(row["blocks"] for row in rows)
    assert [one["blocks"] for one in kv["holders"]] == sorted((row["blocks"] for row in rows), reverse=True)[
        : len(kv["holders"])
    ]
    assert sum(partition["shared"]["split"]) == sum(partition["effective"]) == 132
    assert [state["split"]["prefill"], state["split"]["decode"]] == partition["effective"]
    assert sum(state["device"]["memory"].values()) == state["device"]["stats"]["gpu"]["memory_total_bytes"]


def check_counters(state: Any, before: Any) -> None:
    if before is None:
        return
    for name, lane in state["lanes"].items():
        then = before["lanes"][name]
        for count in ("steps", "slow_steps", "prefill_tokens", "decode_tokens", "busy_ms"):
            assert lane[count] >= then[count]
        assert lane["busy_ms"] - then["busy_ms"] <= 1000 + TOLERANCE * 1e3
    assert state["preemptions"] >= before["preemptions"]


def check_row(row: Any) -> None:
    tokens = row["prompt_tokens"] + row["output_tokens"]
    placed = row["state"] in ("prefilling", "decoding")
    assert row["blocks"] == (-(-tokens // 16) if placed else 0)
    assert row["output_tokens"] <= row["max_tokens"]
    assert row["cached_tokens"] < row["prompt_tokens"]
    if row["ttft_ms"] is not None:
        assert row["ttft_ms"] == pytest.approx(row["queue_ms"] + row["prefill_ms"])
        assert min(row["queue_ms"], row["prefill_ms"]) >= 0
    if row["tpot_ms"] is not None:
        end_ms = row["ttft_ms"] + row["tpot_ms"] * (row["output_tokens"] - 1)
        assert row["tpot_ms"] > 0
        assert end_ms <= row["age_ms"] + TOLERANCE * 1e3
    assert (row["finish_reason"] is None) == (row["state"] != "finished")


def check_events(events: list[Any], finished: dict[int, Any]) -> None:
    assert [int(event["id"].split("-")[1]) for event in events] == list(range(1, len(events) + 1))
    assert all(one["at_s"] <= two["at_s"] for one, two in pairwise(events))
    told: dict[str, list[Any]] = {}
    for event in events:
        if event["request_id"] is not None:
            told.setdefault(event["request_id"], []).append(event)
    assert len(finished) > 5000
    for row in finished.values():
        kinds = by_kind(told[row["id"]])
        [arrived], [end] = kinds["arrived"], kinds["finished"]
        assert arrived["at_s"] == row["arrived_at_s"]
        assert (end["at_s"] - arrived["at_s"]) * 1e3 == pytest.approx(row["age_ms"], abs=0.01)
        assert end["data"]["output_tokens"] == row["output_tokens"]
        assert end["data"]["tpot_ms"] == row["tpot_ms"]
        assert len(kinds.get("preempted", ())) == row["preemptions"]
        assert [one["data"]["ttft_ms"] for one in kinds.get("first_byte", ())] == [
            ms for ms in [row["ttft_ms"]] if ms is not None
        ]


def test_the_first_day_has_everything_worth_seeing(first_day: list[Seen]) -> None:
    monitor = Monitor(1.0)
    for seen in first_day:
        monitor.take(seen)
    picture = monitor.picture(first_day[-1].at_s)
    states = [seen.frame.state for seen in first_day]
    assert {sample.way for sample in picture.samples} >= {"split", "merged", "decode only", "idle"}
    assert {state["state"] for state in states} == {"starting", "ready", "restarting"}
    assert {state["drain"]["state"] for state in states} >= {"serving", "draining"}
    assert {state["engine"]["attempt"] for state in states} == {None, 1, 2}
    assert {state["partition"]["mode"] for state in states if state["partition"]} == {"auto", "fixed"}
    assert len({tuple(s["partition"]["shared"]["split"]) for s in states if s["partition"]}) >= 4
    assert max(sample.used_kv_frac or 0 for sample in picture.samples) > 0.95
    attained = [sample.attainment_frac for sample in picture.samples if sample.attainment_frac is not None]
    assert min(attained) < 0.5 < 0.99 < max(attained)
    assert set(states[-1]["refused"]) >= {"overloaded", "draining"}
    assert not all(state["lamps"]["progress"]["ok"] for state in states)


# ---- as a source -----------------------------------------------------------------------------------


async def test_the_source_without_pacing_is_the_world() -> None:
    source = DemoSource(0.5, paced=False, began_s=BEGAN_S)
    async with aclosing(source.items()) as items:
        found = [await anext(items) for _ in range(100)]
    demo = world()
    assert found == [demo.advance(0.0)] + [demo.advance(0.5) for _ in range(99)]
    assert source.now_s() == found[-1].at_s
    assert source.operator is source.world.operator


async def test_the_paced_source_keeps_time() -> None:
    source = DemoSource(0.05, skip_s=60.0)
    async with aclosing(source.items()) as items:
        found = [await anext(items) for _ in range(5)]
        age_s = source.now_s() - found[-1].at_s
    assert found[-1].at_s - found[0].at_s == pytest.approx(0.2)
    assert isinstance(found[0], Seen)
    assert found[0].frame.state["uptime_s"] == 60.0
    assert -0.01 <= age_s < 20
