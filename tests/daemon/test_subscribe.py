"""Subscriptions, requests and cancels over the Unix socket, with both clients and with raw bytes."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from support.daemon import Running, running
from support.events import told
from support.known import known
from support.top_state import event, state

from semipd.client import AsyncClient, StateStream
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.events import EventRow
from semipd.core.state.daemon import health
from semipd.daemon.history.vitals import SAMPLE_INTERVAL_S
from semipd.wire.client_protocol import MAX_UNREAD_EVENTS, StateFrame, hello
from semipd.wire.frames import FrameReader, encode_frame

FAKE = default_engine_settings(device="fake")
STATE_KEYS = {
    "drain",
    "engine",
    "at_s",
    "uptime_s",
    "state",
    "model",
    "versions",
    "device",
    "split",
    "lanes",
    "kv",
    "prefix",
    "preemptions",
    "scheduler",
    "last_split_change",
    "requests",
    "throughput",
    "slo",
    "partition",
    "lamps",
    "refused",
    "notes",
}


@asynccontextmanager
async def connected(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Running, AsyncClient]]:
    async with (
        running(tmp_path, **options) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        yield daemon, client


async def test_state_frames_follow_the_work(tmp_path: Path) -> None:
    async with connected(tmp_path, fake=FAKE) as (_daemon, client):
        async with client.subscribe(interval_ms=100) as states:
            first = await anext(states)
            stream = client.generate([1, 2, 3], max_tokens=2000, ignore_eos=True)
            await anext(stream)
            busy = first
            while not busy.state["requests"]["decoding"]:
                busy = await anext(states)
            await stream.cancel()
            await collect(stream)
        listed = await client.requests()
    assert set(first.state) == set(busy.state) == STATE_KEYS
    assert (first.events, first.lost) == ([], 0)
    assert first.state["model"] == {"name": "bytes", "max_model_len": 2048}
    assert known(first.state["device"])["num_units"] == 16
    assert all(ok for _, ok in health(busy.state["lamps"]))
    assert known(busy.state["kv"])["used_blocks"] > 0
    assert busy.state["split"] == {"prefill": 0, "decode": 16, "unit": "unit"}
    assert known(busy.state["last_split_change"])["to"] == [0, 16]
    assert busy.state["requests"]["live"] == 1
    assert busy.state["at_s"] > first.state["at_s"]
    assert listed[0]["finish_reason"] == "cancelled"


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def test_throughput_and_service_levels_in_the_frame(tmp_path: Path) -> None:
    async with connected(tmp_path, fake=FAKE) as (_, client), client.subscribe(interval_ms=100) as states:
        await anext(states)
        await collect(client.generate([1] * 40, max_tokens=20, ignore_eos=True))
        settled_s = time.time() + 2 * SAMPLE_INTERVAL_S
        while (state := (await anext(states)).state)["at_s"] < settled_s:
            pass
    assert state["throughput"]["prompt_tokens_per_s"] == 2 * state["throughput"]["output_tokens_per_s"]
    assert (state["slo"]["requests"], state["slo"]["attainment"]) == (1, 1.0)
    assert known(state["slo"]["ttft_ms"]["p99"]) == known(state["slo"]["ttft_ms"]["p50"]) > 0
    assert state["requests"]["totals"] == {"admitted": 1, "length": 1}


async def test_frames_come_without_an_engine(tmp_path: Path) -> None:
    async with connected(tmp_path, start=False) as (_daemon, client):
        state = (await anext(client.subscribe())).state
    assert state is not None
    assert state["state"] == "starting"
    assert (state["kv"], state["lanes"], state["device"]) == (None, None, None)
    assert not any(ok for _, ok in health(state["lamps"]))


async def test_events_of_a_subscription(tmp_path: Path) -> None:
    async with connected(tmp_path, fake=FAKE) as (_daemon, client):
        async with client.subscribe(interval_ms=100, events=True) as states:
            await anext(states)
            await collect(client.generate([1], max_tokens=2, ignore_eos=True, request_id="mine"))
            events = await events_until(states, "finished")
        async with client.subscribe(interval_ms=100, events=True, after=events[0]["id"]) as again:
            assert await events_until(again, "finished") == events[1:]
        with pytest.raises(SemipdError) as refused:
            await anext(client.subscribe(events=True, after="nonsense"))
        with pytest.raises(SemipdError) as without_events:
            await anext(client.subscribe(after=events[0]["id"]))
    assert refused.value.param == without_events.value.param == "after"
    kinds = [event["kind"] for event in events if event["request_id"] == "mine"]
    assert kinds == ["arrived", "queued", "admitted", "first_token", "first_byte", "finished"]


async def events_until(states: StateStream, kind: str) -> list[EventRow]:
    found: list[EventRow] = []
    while kind not in [event["kind"] for event in found]:
        frame = await anext(states)
        assert frame.lost == 0
        found += frame.events
    return found


async def test_only_the_chosen_kinds_of_events_are_sent(tmp_path: Path) -> None:
    async with (
        connected(tmp_path, fake=FAKE) as (daemon, client),
        client.subscribe(interval_ms=100, events=True, kinds=["finished", "arrived"]) as states,
    ):
        await anext(states)
        await collect(client.generate([1], max_tokens=2, ignore_eos=True))
        events = await events_until(states, "finished")
        journal = daemon.services.history.journal
        for number in range(5000):  # more than the ring holds
            journal.add(number, told("first_byte"))
        last = journal.add(0, told("finished", reason="stop", output_tokens=7)).number
        frame = await anext(states)
        while not frame.events:
            frame = await anext(states)
    assert [event["kind"] for event in events] == ["arrived", "finished"]
    assert [dict(event["data"]) for event in frame.events] == [{"reason": "stop", "output_tokens": 7}]
    seen_by_then = int(events[-1]["id"].split("-")[1])
    assert frame.lost == last - seen_by_then - 4096, "what was overwritten, whatever it was"


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["finished", "noise"], "'slow_step'"),
        (["finished", "noise"], "'arrived'"),
        ([], "at least 1"),
        ("finished", "list"),
    ],
)
async def test_kinds_that_do_not_exist_are_refused_with_those_that_do(
    tmp_path: Path, kinds: list[str], says: str
) -> None:
    async with running(tmp_path) as daemon, Talk(daemon) as talk:
        talk.say({"id": 1, "op": "subscribe", "events": True, "kinds": kinds})
        error = (await talk.next())["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "kinds")
        assert says in error["message"]
        talk.say({"id": 2, "op": "subscribe", "kinds": ["finished"]})
        error = (await talk.next())["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "kinds"), "without events"


async def test_unsubscribing_ends_the_frames(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Talk(daemon) as talk:
        talk.say({"id": 1, "op": "subscribe", "interval_ms": 100})
        assert "state" in await talk.next()
        talk.say({"id": 2, "op": "unsubscribe", "target": 1})
        answers = [await talk.next_but_states(), await talk.next_but_states()]
        assert sorted(answers, key=lambda answer: int(answer["id"])) == [
            {"id": 1, "ended": "unsubscribed"},
            {"id": 2, "unsubscribed": True},
        ]
        talk.say({"id": 3, "op": "unsubscribe", "target": 1})
        assert await talk.next() == {"id": 3, "unsubscribed": False}


async def test_the_end_of_the_daemon_ends_subscriptions_with_a_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        client = await AsyncClient.connect(daemon.socket_path)
        states = client.subscribe(interval_ms=60_000)
        await anext(states)
        other = Talk(daemon)
        await other.__aenter__()
        other.say({"id": 1, "op": "subscribe", "interval_ms": 60_000})
        await other.next()
    assert await other.next() == {"id": 1, "ended": "shutting_down"}
    with pytest.raises(StopAsyncIteration):
        await anext(states)
    await client.close()
    await other.__aexit__()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"op": "subscribe", "interval_ms": 1}, "interval_ms"),
        ({"op": "subscribe", "interval_ms": 1.5}, "interval_ms"),
        ({"op": "subscribe", "events": 1}, "events"),
        ({"op": "unsubscribe"}, "target"),
        ({"op": "requests", "state": "asleep"}, "state"),
        ({"op": "requests", "limit": 0}, "limit"),
        ({"op": "cancel", "target": 1, "request_id": "x"}, "target"),
        ({"op": "generate", "prompt": "a", "request_id": "two words"}, "request_id"),
    ],
)
async def test_wrong_requests_name_the_field(tmp_path: Path, request_: dict[str, Any], param: str) -> None:
    async with running(tmp_path) as daemon, Talk(daemon) as talk:
        talk.say({"id": 1} | request_)
        assert (await talk.next())["error"]["param"] == param


async def test_a_slow_reader_gets_the_newest_state_and_every_event(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Talk(daemon) as talk:
        talk.say({"id": 1, "op": "subscribe", "interval_ms": 100, "events": True})
        await talk.next()
        journal = daemon.services.history.journal
        last_read_s, read_before = 0.0, 0
        for number in range(12):
            journal.add(number, told("noise", number=number))
            await asyncio.sleep(0.1)
            if number == 5:
                talk.deaf, read_before = True, len(talk.received)
        waited_s = daemon.services.uptime_s
        seen: list[int] = []
        frames: list[dict[str, Any]] = []
        talk.deaf = False
        while 11 not in seen:
            frames.append(await talk.next())
            seen += [event["data"]["number"] for event in frames[-1].get("events", ())]
            last_read_s = frames[-1]["state"]["uptime_s"]
    assert seen == list(range(12))
    assert last_read_s > waited_s, "the frame with the last event was built when it could be read"
    late = [frame for frame in frames if frame["state"]["uptime_s"] <= waited_s]
    assert len(late) <= read_before + 1, "the one on its way when the reading stopped"


async def test_a_subscriber_that_never_reads_costs_one_frame(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.connect(os.fspath(daemon.socket_path))
        deaf.sendall(
            encode_frame(hello("deaf")) + encode_frame({"id": 1, "op": "subscribe", "interval_ms": 100})
        )
        async with await AsyncClient.connect(daemon.socket_path) as client:
            states = client.subscribe(interval_ms=100)
            for _ in range(10):
                await anext(states)
        deaf.setblocking(False)
        received = FrameReader().feed(deaf.recv(2**20))
        deaf.close()
    assert [set(frame) for frame in received[1:]] == [{"id", "state"}]


async def test_a_slow_consumer_of_the_async_client_gets_one_frame(tmp_path: Path) -> None:
    async with connected(tmp_path) as (daemon, client):
        states = client.subscribe(interval_ms=100, events=True)
        await anext(states)
        for number in range(5):
            daemon.services.history.journal.add(number, told("noise", number=number))
            await asyncio.sleep(0.15)
        before_s = daemon.services.uptime_s
        frame = await anext(states)
        following = await anext(states)
    assert [cast(Any, event["data"])["number"] for event in frame.events] == list(range(5))
    assert frame.state["uptime_s"] <= before_s < following.state["uptime_s"]


def test_merged_frames_are_bounded() -> None:
    frame = StateFrame(state({"at_s": 0.0}), [event("queued", at_s=0)])
    for number in range(1, MAX_UNREAD_EVENTS + 11):
        frame = frame.then(StateFrame(state({"at_s": number}), [event("queued", at_s=number)]))
    assert frame.state["at_s"] == MAX_UNREAD_EVENTS + 10
    assert frame.lost == 11
    assert [event["at_s"] for event in frame.events] == list(range(11, MAX_UNREAD_EVENTS + 11))


async def test_cancel_by_public_id_and_requests(tmp_path: Path) -> None:
    async with connected(tmp_path, max_steps=3) as (daemon, client):
        stream = client.generate([97], max_tokens=50, request_id="job-1")
        await anext(stream)
        async with await AsyncClient.connect(daemon.socket_path) as other:
            live = await other.requests(state="live")
            assert await other.cancel_request("job-1") == "cancelled"
            with pytest.raises(SemipdError) as ended:
                await collect(stream)
            assert await other.cancel_request("job-1") == "already_finished"
            assert await other.cancel_request("job-2") == "not_found"
            [one] = await other.requests(request_id="job-1")
            assert await other.requests(request_id="job-2") == []
            assert await other.requests(state="live") == []
    assert ended.value.code == "request_cancelled"
    assert [record["id"] for record in live] == ["job-1"]
    assert [event["kind"] for event in one["events"]] == ["arrived", "first_byte", "finished"]
    assert "events" not in live[0]


async def test_timing_on_demand(tmp_path: Path) -> None:
    async with connected(tmp_path, fake=FAKE) as (_daemon, client):
        items = await collect(client.generate([1, 2], max_tokens=5, ignore_eos=True, include_timing=True))
        plain = await collect(client.generate([1, 2], max_tokens=5, ignore_eos=True))
    timing = items[-1].usage["timing"]
    assert timing["queue_ms"] + timing["prefill_ms"] <= timing["ttft_ms"] <= timing["total_ms"]
    assert "timing" not in plain[-1].usage


async def test_tokens_that_wait_leave_in_one_piece(tmp_path: Path) -> None:
    async with running(tmp_path, step_ms=0) as daemon, Talk(daemon) as talk:
        talk.deaf = True
        talk.say({"id": 1, "op": "generate", "prompt": [97], "max_tokens": 4000})
        await daemon.engine_says(lambda status: len(status["submitted"]) == 1 and not status["live"])
        talk.deaf = False
        items = [await talk.next()]
        while "finish_reason" not in items[-1]:
            items.append(await talk.next())
    assert sum(len(item["token_ids"]) for item in items) == 4000
    assert len(items) < 4000, "several tokens, one write"


class Talk:
    """A raw connection. While `deaf`, nothing is read from the socket."""

    def __init__(self, daemon: Running) -> None:
        self._path = os.fspath(daemon.socket_path)
        self._frames = FrameReader()
        self.received: list[dict[str, Any]] = []
        self.deaf = False

    async def __aenter__(self) -> "Talk":
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        await self._loop.sock_connect(self._sock, self._path)
        self.say(hello("test"))
        assert (await self.next())["op"] == "hello"
        self._reading = asyncio.create_task(self._read_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self._sock.close()

    def say(self, message: dict[str, Any]) -> None:
        self._sock.sendall(encode_frame(message))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while not self.received:
                await self._feed()
        return self.received.pop(0)

    async def next_but_states(self) -> dict[str, Any]:
        while "state" in (message := await self.next()):
            pass
        return message

    async def _feed(self) -> None:
        if getattr(self, "_reading", None) is not None:
            await asyncio.sleep(0.005)
            return
        self.received += self._frames.feed(await self._loop.sock_recv(self._sock, 2**16))

    async def _read_on(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            if not self.deaf:
                try:
                    data = self._sock.recv(2**16)
                except BlockingIOError:
                    continue
                if not data:
                    return
                self.received += self._frames.feed(data)


def test_a_frame_is_plain_data() -> None:
    made, happened = state(), [event("arrived")]
    frame = StateFrame(made, happened, 2)
    wire = frame.to_wire(7)
    assert json.loads(json.dumps(wire)) == {"id": 7, "state": made, "events": happened, "lost": 2}
    assert StateFrame.from_wire(wire) == frame
