"""The live source against whole daemons on the fake device and the scripted engine."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from semipd_top.sources.contract import Gone, Item, Seen
from semipd_top.sources.live import LiveSource
from support.daemon import running
from support.daemon_process import LIMIT_S, fake_process, scripted_process
from support.events import told

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.peers import Peer
from semipd.wire.client_protocol import hello
from semipd.wire.frames import encode_frame

FAKE = default_engine_settings(device="fake")


async def until(items: AsyncGenerator[Item, None], kind: type[Item], wanted: Any = lambda _item: True) -> Any:
    async with asyncio.timeout(LIMIT_S):
        async for item in items:
            if isinstance(item, kind) and wanted(item):
                return item
    raise AssertionError(f"no such {kind.__name__}")


async def collect(client: AsyncClient, **options: Any) -> None:
    async for _ in client.generate([1, 2, 3], ignore_eos=True, **options):
        pass


async def test_frames_events_and_requests(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        source = LiveSource(daemon.socket_path, 0.25)
        with pytest.raises(SemipdError) as early:
            _ = source.operator
        async with aclosing(source.items()) as items:
            first = await until(items, Seen)
            assert first.requests == []
            assert 0 <= source.now_s() - first.at_s < LIMIT_S
            async with await AsyncClient.connect(daemon.socket_path) as client:
                await collect(client, max_tokens=5, request_id="one")
            seen = await until(items, Seen, lambda seen: seen.frame.events)
            listed = await until(items, Seen, lambda seen: seen.requests)
            [row] = await source.operator.requests(request_id="one")
        assert early.value.code == "not_connected"
        assert seen.frame.state["model"]["name"] == "bytes"
        assert listed.requests[0]["id"] == "one"
        assert row["events"]
        with pytest.raises(SemipdError):
            _ = source.operator
        assert source.title == str(daemon.socket_path)


async def test_requests_are_listed_only_while_wanted_and_once_a_second(tmp_path: Path) -> None:
    wanted = False
    async with running(tmp_path, fake=FAKE) as daemon:
        source = LiveSource(daemon.socket_path, 0.1, lambda: wanted)
        async with aclosing(source.items()) as items:
            assert [(await until(items, Seen)).requests for _ in range(3)] == [None] * 3
            wanted = True
            found = [(await until(items, Seen)) for _ in range(15)]
    listings = [seen.at_s for seen in found if seen.requests is not None]
    assert listings
    assert len(listings) <= 2 + (found[-1].at_s - found[0].at_s)


async def test_past_events_come_first_when_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        journal = daemon.services.history.journal
        for number in range(5000):
            journal.add(number, told("noise", number=number))
        for past_events, num in ((True, 512), (False, 0)):
            source = LiveSource(daemon.socket_path, 0.1, past_events=past_events)
            async with aclosing(source.items()) as items:
                seen = await until(items, Seen)
                assert (len(seen.frame.events), seen.frame.lost) == (num, 0)


async def test_a_killed_daemon_is_waited_for_and_its_successor_shown(tmp_path: Path) -> None:
    source = LiveSource(tmp_path / "d.sock", 0.25)
    async with aclosing(source.items()) as items:
        waiting = await until(items, Gone)
        assert waiting.code == "daemon_not_running"
        assert waiting.retry_s > waiting.at_s
        with fake_process(tmp_path) as daemon:
            first = await until(items, Seen)
            await collect(source.operator, max_tokens=3)  # type: ignore[arg-type]
            before = await until(items, Seen, lambda seen: seen.frame.events)
            daemon.process.kill()
            lost = await until(items, Gone)
            with pytest.raises(SemipdError) as refused:
                _ = source.operator
        assert lost.code in ("connection_lost", "daemon_not_running")
        assert refused.value.code == "not_connected"
        with fake_process(tmp_path):
            async with await AsyncClient.connect(tmp_path / "d.sock") as client:
                await collect(client, max_tokens=3, request_id="again")
            after = await until(items, Seen, lambda seen: seen.frame.events)
            assert after.frame.state["uptime_s"] < LIMIT_S
    assert first.frame.state["state"] == "ready"
    ids = [before.frame.events[-1]["id"], after.frame.events[0]["id"]]
    assert ids[0].split("-")[0] != ids[1].split("-")[0]
    assert ids[1].endswith("-1"), "what the new daemon did before we came is seen too"


async def test_a_lost_connection_goes_on_behind_the_last_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        journal = daemon.services.history.journal
        source = LiveSource(daemon.socket_path, 0.1)
        async with aclosing(source.items()) as items:
            await until(items, Seen)
            journal.add(1, told("noise", number=1))
            seen = await until(items, Seen, lambda seen: seen.frame.events)
            await source.operator.close()  # type: ignore[attr-defined]
            journal.add(2, told("noise", number=2))
            gone = await until(items, Gone)
            again = await until(items, Seen, lambda seen: seen.frame.events)
    assert gone.retry_s is not None
    numbers = [event["data"]["number"] for one in (seen, again) for event in one.frame.events]
    assert numbers == [1, 2]


async def test_a_stopping_daemon_says_so(tmp_path: Path) -> None:
    with fake_process(tmp_path) as daemon:
        source = LiveSource(tmp_path / "d.sock", 0.25)
        async with aclosing(source.items()) as items:
            await until(items, Seen)
            daemon.process.send_signal(signal.SIGTERM)
            gone = await until(items, Gone)
    assert gone.code == "shutting_down"
    assert gone.retry_s is not None


async def test_a_daemon_that_stops_turning_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd_top.sources.live.FRAME_LIMIT_S", 0.2)
    with scripted_process(tmp_path) as daemon:
        source = LiveSource(daemon.socket_path, 0.1)
        async with aclosing(source.items()) as items:
            await until(items, Seen)
            os.kill(daemon.process.pid, signal.SIGSTOP)
            try:
                gone = await until(items, Gone)
            finally:
                os.kill(daemon.process.pid, signal.SIGCONT)
            assert gone.code == "daemon_silent"
            await until(items, Seen)


async def test_guests_are_told_once_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        daemon.services.auth.guests_gid = group = 4321
        monkeypatch.setattr(peers, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({group})))
        found = [item async for item in LiveSource(daemon.socket_path, 0.1).items()]
    assert [(type(item), item.code, item.retry_s) for item in found] == [(Gone, "operator_required", None)]  # type: ignore[union-attr]


async def test_another_protocol_is_final(tmp_path: Path) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_frame(hello("semipd") | {"protocol": 99}))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(greet, tmp_path / "s.sock")
    async with server:
        found = [item async for item in LiveSource(tmp_path / "s.sock", 0.1).items()]
    assert [item.code for item in found] == ["protocol_version"]  # type: ignore[union-attr]


async def test_retries_come_slower_and_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def skip(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("semipd_top.sources.live.asyncio.sleep", skip)
    left_over = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left_over))
    async with aclosing(LiveSource(left_over, 0.1, clock_s=lambda: 7.0).items()) as items:
        gone = [await anext(items) for _ in range(7)]
    assert {item.code for item in gone if isinstance(item, Gone)} == {"daemon_not_running"}
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
