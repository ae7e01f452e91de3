"""What is recorded is read back equal, whatever happens to the file."""

import asyncio
import gzip
import json
import resource
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from semipd_top.picture.picture import Monitor
from semipd_top.sources.changes import changed, changed_rows, changes, row_changes
from semipd_top.sources.contract import Gone, Item, Seen, Source
from semipd_top.sources.demo import DemoSource
from semipd_top.sources.live import LiveSource
from semipd_top.sources.recording import VERSION, Recorder, Recording
from semipd_top.sources.replay import ReplayClock, ReplaySource
from support.daemon import running
from support.top_state import state

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.wire.client_protocol import StateFrame

NAMES = ("r.jsonl", "r.jsonl.gz")
BEGAN_S = 1_790_000_000.0
LIMIT_S = 60


def record(path: Path, items: Sequence[Item]) -> None:
    with Recorder(path, "a test", 0.5) as recorder:
        for item in items:
            recorder.write(item)
    assert recorder.stopped is None


def read(path: Path) -> tuple[list[Item], Recording]:
    recording = Recording(path)
    return list(recording.items()), recording


async def taken(source: Source, num_items: int) -> list[Item]:
    async with aclosing(source.items()) as items:
        return [await anext(items) for _ in range(num_items)]


@pytest.fixture(scope="module")
def demo_items() -> list[Item]:
    """With an engine's start and death in it."""
    return asyncio.run(taken(DemoSource(0.5, paced=False, began_s=BEGAN_S), 520))


# ---- equal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_is_read_back_equal(demo_items: list[Item], tmp_path: Path, name: str) -> None:
    gone = Gone(BEGAN_S, "connection_lost", "It is gone.", "Wait.", BEGAN_S + 1)
    items = [gone, *demo_items[:300], gone, *demo_items[300:], Gone(BEGAN_S, "a", "b")]
    record(tmp_path / name, items)
    found, recording = read(tmp_path / name)
    assert found == items
    assert recording.cut == ""
    assert pictures(found) == pictures(items)


def pictures(items: Sequence[Item]) -> list[Any]:
    monitor = Monitor(0.5)
    drawn = []
    for item in items:
        monitor.take(item)
        drawn.append(monitor.picture(item.at_s))
    return drawn


async def test_a_live_run_is_read_back_equal(tmp_path: Path) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake")) as daemon:
        source = LiveSource(daemon.socket_path, 0.1)
        with Recorder(tmp_path / "r.jsonl", source.title, source.interval_s) as recorder:
            items = await recorded_run(source, recorder, daemon.socket_path)
    found, recording = read(tmp_path / "r.jsonl")
    assert found == items
    assert {type(item) for item in items} == {Seen, Gone}
    assert any(isinstance(item, Seen) and item.requests for item in items)
    assert recording.header.title == str(daemon.socket_path)


async def recorded_run(source: LiveSource, recorder: Recorder, path: Path) -> list[Item]:
    """Requests, a lost connection, and more requests."""
    items: list[Item] = []
    async with asyncio.timeout(LIMIT_S), aclosing(source.items()) as stream:
        async for item in stream:
            items.append(item)
            recorder.write(item)
            if len(items) in (3, 15):
                async with await AsyncClient.connect(path) as client:
                    async for _ in client.generate([1, 2], max_tokens=20, ignore_eos=True):
                        pass
            if len(items) == 10:
                await source.operator.close()  # type: ignore[attr-defined]
            if len(items) == 30:
                break
    return items


def test_changes_of_plain_data() -> None:
    before = {"a": 1, "b": {"x": [1], "y": {"z": None}}, "c": {"free": 1}}
    after = {"a": 1, "b": {"x": [1, 2], "y": {"z": 3.5}}, "c": {"other": 1}}
    told = changes(before, after)
    assert told == [[["b", "x"], [1, 2]], [["b", "y", "z"], 3.5], [["c"], {"other": 1}]]
    assert changed(before, told) == after
    assert before["b"] == {"x": [1], "y": {"z": None}}, "nobody's data is changed"
    assert changes(after, after) == []
    assert changed(before, changes(before, {"new": {}})) == {"new": {}}


def test_changes_of_rows() -> None:
    rows: list[Any] = [{"seq": number, "age": 1} for number in (5, 4, 3, 2, 1)]
    before = {row["seq"]: row for row in rows}
    later = [{"seq": 6, "age": 0}, {"seq": 4, "age": 2}, *rows[2:4], {"seq": 5, "age": 1, "more": 1}]
    told = row_changes(before, later)
    assert told == {
        "new": [later[0], later[4]],
        "changed": [[4, {"age": 2}]],
        "order": [6, [1, 4], [0, 1]],
    }
    assert [*changed_rows(before, told)] == later
    assert changed_rows(before, row_changes(before, [])) == []


def test_what_does_not_change_costs_little(demo_items: list[Item], tmp_path: Path) -> None:
    record(tmp_path / "r.jsonl", demo_items)
    seen = [item for item in demo_items if isinstance(item, Seen)]
    plain = sum(len(json.dumps([item.frame.state, item.requests])) for item in seen)
    assert (tmp_path / "r.jsonl").stat().st_size < plain / 4


# ---- what can happen to a file ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_item_can_be_read_at_once(demo_items: list[Item], tmp_path: Path, name: str) -> None:
    recorder = Recorder(tmp_path / name, "a test", 0.5)
    for num, item in enumerate(demo_items[:5], start=1):
        recorder.write(item)
        found, recording = read(tmp_path / name)
        assert found == demo_items[:num]
        assert recording.cut, "it is not closed yet"
    recorder.close()
    assert read(tmp_path / name)[1].cut == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_file_is_read_up_to_the_cut(demo_items: list[Item], tmp_path: Path, name: str) -> None:
    record(tmp_path / "whole", demo_items[:40])
    record(tmp_path / name, demo_items[:40])
    whole = (tmp_path / name).read_bytes()
    for part in (0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
        found, recording = read(tmp_path / name)
        assert found == demo_items[: len(found)]
        assert 0 < len(found) <= 40
        assert f"after {len(found)} items" in recording.cut


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_up_to_the_damage(demo_items: list[Item], tmp_path: Path, name: str) -> None:
    record(tmp_path / name, demo_items[:40])
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 50] = b"\xff" * 50
    (tmp_path / name).write_bytes(damaged)
    found, recording = read(tmp_path / name)
    assert found == demo_items[: len(found)]
    assert 0 < len(found) < 40
    assert recording.cut


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_a_recording"),
        (b"hello\n", "not_a_recording"),
        (b"[1]\n", "not_a_recording"),
        (b'{"format": "another"}\n', "not_a_recording"),
        (b"\x7fELF" + bytes(range(256)) * 999, "not_a_recording"),
        (b"\x1f\x8b but no gzip", "not_a_recording"),
        (b'{"format": "semipd-top recording", "version": 99, "semipd": "9.0"}\n', "recording_version"),
        (b'{"format": "semipd-top recording", "version": 1}\n', "not_a_recording"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(SemipdError) as refused:
        ReplaySource(tmp_path / "f")
    assert refused.value.code == code
    assert str(tmp_path / "f") in refused.value.message


@pytest.mark.parametrize("path", ["missing", "."])
def test_what_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(SemipdError) as refused:
        Recording(tmp_path / path)
    assert refused.value.code == "file_unreadable"


def test_the_header_says_what_it_is(tmp_path: Path) -> None:
    record(tmp_path / "r.gz", [])
    with gzip.open(tmp_path / "r.gz", "rt") as file:
        header = json.loads(file.readline())
    assert (header["format"], header["version"]) == ("semipd-top recording", VERSION)
    assert (header["title"], header["interval_s"]) == ("a test", 0.5)


def test_a_recording_is_its_makers_alone(demo_items: list[Item], tmp_path: Path) -> None:
    record(tmp_path / "new", demo_items[:1])
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    (tmp_path / "planted").symlink_to(tmp_path / "victim")
    with pytest.raises(SemipdError):
        record(tmp_path / "planted", demo_items[:1])
    assert not (tmp_path / "victim").exists()


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("precious")
    with pytest.raises(SemipdError) as refused:
        Recorder(tmp_path / "r", "", 1.0)
    assert refused.value.code == "file_exists"
    assert (tmp_path / "r").read_text() == "precious"
    with pytest.raises(SemipdError) as refused:
        Recorder(tmp_path / "no" / "folder", "", 1.0)
    assert refused.value.code == "file_unwritable"


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """In each file; like a full disk, and Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_stops_the_recording_and_nothing_else(
    demo_items: list[Item], tmp_path: Path, name: str
) -> None:
    recorder = Recorder(tmp_path / name, "a test", 0.5)
    assert recorder.status == f"recording to {name}"
    with room_for(30_000):
        for item in demo_items:
            recorder.write(item)
        recorder.close()
    assert recorder.stopped is not None
    assert recorder.stopped.code == "recording_stopped"
    assert "File too large" in recorder.status
    found, recording = read(tmp_path / name)
    assert found == demo_items[: len(found)]
    assert 0 < len(found) <= recorder.num_items
    assert recording.cut


# ---- replay ----------------------------------------------------------------------------------------


def frames(*times_s: float) -> list[Item]:
    return [Seen(at_s, StateFrame(state({"at_s": at_s}))) for at_s in times_s]


async def replayed(source: ReplaySource) -> AsyncGenerator[tuple[Item, float], None]:
    """With the source's time when each came."""
    async with asyncio.timeout(LIMIT_S), aclosing(source.items()) as items:
        async for item in items:
            yield item, source.now_s()


async def test_a_replay_keeps_time_and_ends(tmp_path: Path) -> None:
    record(tmp_path / "r", frames(100.0, 110.0, 130.0))
    source = ReplaySource(tmp_path / "r", speed=100.0)
    found = [pair async for pair in replayed(source)]
    *seen, (over, _) = found
    assert [item for item, _ in seen] == frames(100.0, 110.0, 130.0)
    assert all(now_s >= item.at_s for item, now_s in seen)
    assert isinstance(over, Gone)
    assert (over.code, over.retry_s) == ("recording_over", None)
    ended_s = source.now_s()
    await asyncio.sleep(0.02)
    assert source.now_s() == ended_s, "time stands still at the end"
    assert source.interval_s == 0.5
    assert source.why_read_only


async def test_without_a_speed_nobody_waits(tmp_path: Path) -> None:
    record(tmp_path / "r", frames(100.0, 1e6, 2e6))
    found = [pair async for pair in replayed(ReplaySource(tmp_path / "r", speed=None))]
    assert [round(now_s, -3) for _, now_s in found] == [0, 1e6, 2e6, 2e6]


async def test_a_cut_replay_says_so(tmp_path: Path) -> None:
    record(tmp_path / "r", frames(1.0, 2.0))
    text = (tmp_path / "r").read_text().splitlines(keepends=True)
    (tmp_path / "r").write_text("".join(text[:-1]))
    *_, (over, _) = [pair async for pair in replayed(ReplaySource(tmp_path / "r", speed=None))]
    assert isinstance(over, Gone)
    assert over.code == "recording_cut"
    assert "after 2 items" in over.message


async def test_pause_step_resume_and_skip(tmp_path: Path) -> None:
    record(tmp_path / "r", frames(0.0, 1000.0, 2000.0, 3000.0, 4000.0))
    source = ReplaySource(tmp_path / "r")
    async with asyncio.timeout(LIMIT_S), aclosing(source.items()) as items:
        assert (await anext(items)).at_s == 0
        source.pause()
        assert source.paused
        stood_s = source.now_s()
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0.02)
        assert source.now_s() == stood_s
        assert not waiting.done()
        source.step()
        assert (await waiting).at_s == 1000.0
        assert source.now_s() == 1000.0
        source.skip(2500.0)
        assert [(await anext(items)).at_s for _ in range(2)] == [2000.0, 3000.0]
        assert source.now_s() == 3500.0
        waiting = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0.02)
        assert not waiting.done(), "still paused"
        source.resume()
        source.speed = 1000.0
        assert (await waiting).at_s == 4000.0


def test_a_clock_changes_its_speed_without_a_jump() -> None:
    real_s = 50.0
    clock = ReplayClock(1000.0, 2.0, lambda: real_s)
    real_s = 60.0
    assert clock.now_s() == 1020.0
    clock.set(speed=0.5)
    assert clock.now_s() == 1020.0
    real_s = 70.0
    assert clock.now_s() == 1025.0
    clock.set(paused=True)
    real_s = 80.0
    assert (clock.now_s(), clock.paused, clock.speed) == (1025.0, True, 0.5)


@pytest.mark.parametrize("speed", [0.0, -1.0, 1e9, float("nan")])
def test_impossible_speeds(tmp_path: Path, speed: float) -> None:
    record(tmp_path / "r", frames(1.0))
    with pytest.raises(SemipdError) as refused:
        ReplaySource(tmp_path / "r", speed)
    assert refused.value.code == "invalid_value"


async def test_a_request_of_the_past_can_be_looked_at_but_nothing_changed(tmp_path: Path) -> None:
    source = DemoSource(0.5, paced=False, began_s=BEGAN_S)
    record(tmp_path / "r", await taken(source, 201))
    row = next(row for row in source.world.rows(100) if row["state"] == "finished")
    [told] = await source.operator.requests(request_id=row["id"])
    replay = ReplaySource(tmp_path / "r", speed=None)
    _ = [pair async for pair in replayed(replay)]
    assert await replay.operator.requests(request_id=row["id"]) == [told]
    assert await replay.operator.requests(request_id="nobody") == []
    live = await replay.operator.requests(state="live", limit=2)
    assert [one["state"] != "finished" for one in live] == [True, True]
    for refusal in (
        replay.operator.set_partition(prefill_units=4),
        replay.operator.clear_partition(),
        replay.operator.set_slo(ttft_ms=1.0),
        replay.operator.cancel_request(row["id"]),
        replay.operator.partition(),
    ):
        with pytest.raises(SemipdError) as refused:
            await refusal
        assert refused.value.code == "recording_read_only"
