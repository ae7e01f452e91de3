"""One frame, one connection: what is wrong with a frame harms no other, and nobody holds the loop."""

import asyncio
import fcntl
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
from support.daemon import Running, running
from support.daemon_process import scripted_process
from support.eventually import eventually

from semipd.client import AsyncClient, Client
from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.history.listing import SLICE_RECORDS, Listings
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.servers import socket_connection
from semipd.system.readiness import any_readable, has_hung_up, writable
from semipd.wire.client_protocol import check_hello, hello
from semipd.wire.frames import HEADER, FrameReader, encode_frame

HELLO = encode_frame(hello("test"))


def framed(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


def packed(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"id": 7, "op": "generate", **fields}))


class Talk:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def begin(cls, path: Path, said: bytes) -> "Talk":
        talk = cls(*await asyncio.open_unix_connection(path))
        talk.writer.write(HELLO + said)
        return talk

    async def to_the_end(self) -> list[dict[str, Any]]:
        """All frames but the hello."""
        async with asyncio.timeout(30):
            data = await self.reader.read()
        self.writer.close()
        return FrameReader().feed(data)[1:]


# ---- malformed content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (packed(logit_bias={5: 1}), 7),
        (packed(chat_template_kwargs={"a": [{1: 2}]}), 7),
        (packed(prompt=[5] * 300_000), 7),
        (packed(messages=[{}] * 70_000), 7),
        (packed() + b"\x00", 7),
        (packed()[:-1], 7),
        (b"\x83\xa1a" + b"\x91" * 2000 + b"\x01\xa2id\x07\xa2op\x01", None),
        (b"\x82\xa1x\xdd\x00\x06\x00\x00" + b"\x01" * 0x60000 + b"\xa2id\x07", 7),
        (b"\x82\x01\x02\xa2id\xa1z", "z"),
        (b"\x82\xa2id\xc3\x01\x02", None),
        (b"\x82\xa2id\x81\x01\x01\x01\x02", None),
        (b"\xc1", None),
        (b"", None),
        (msgpack.packb([1, 2]), None),
        (b"\xdd\xff\xff\xff\xff", None),
        (b"\xdf\xff\xff\xff\xff", None),
        (b"\x81\xa2id\xa1\xff", None),
    ],
)
async def test_a_malformed_frame_is_refused_alone(tmp_path: Path, body: bytes, answered: Any) -> None:
    async with running(tmp_path) as daemon:
        going = {"id": 1, "op": "generate", "prompt": [97], "max_tokens": 300}
        last = {"id": 2, "op": "models"}
        talk = await Talk.begin(daemon.socket_path, encode_frame(going) + framed(body) + encode_frame(last))
        talk.writer.write_eof()
        said = await talk.to_the_end()
    [error] = [frame for frame in said if "error" in frame]
    assert (error["id"], error["error"]["code"], "closing" in error) == (answered, "malformed_frame", False)
    assert sum(len(frame["token_ids"]) for frame in said if frame["id"] == 1) == 300
    assert [frame["models"] for frame in said if frame["id"] == 2]


async def test_a_malformed_frame_with_the_id_of_a_stream_does_not_end_it(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        stream = client.generate([97], max_tokens=300)
        first = await anext(stream)
        client._writer.write(framed(msgpack.packb({"id": stream.id, "op": "cancel", 5: 5})))
        items = [first, *[item async for item in stream]]
        assert await client.models()
    assert sum(len(item.token_ids) for item in items) == 300


async def test_the_greeting_says_the_limits_in_force(tmp_path: Path) -> None:
    settings = {"limits.max_body_values": 4100}
    async with (
        running(tmp_path, start=False, settings=settings) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        limits = client.greeting.limits
        assert (limits["array_entries"], limits["map_entries"], limits["values"]) == (4100, 4100, 4100)
        with pytest.raises(SemipdError) as refused:
            client.generate([5] * 4101)
        assert refused.value.code == "cannot_be_sent"
        assert "4100" in refused.value.message + refused.value.hint
        client._writer.write(framed(msgpack.packb({"id": 9, "op": "detokenize", "tokens": [5] * 4101})))
        assert await client.models()


async def test_the_asyncio_client_sends_nothing_that_is_refused_as_a_frame(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        messages = [{"role": "user", "content": "x"}]
        for wrong in (
            {"prompt": [5] * 300_000},
            {"messages": messages, "chat_template_kwargs": {"a": {1: 2}}},
            {"prompt": "a", "logit_bias": {(1, 2): 1}},
            {"prompt": "a", "logit_bias": {True: 1}},
        ):
            with pytest.raises(SemipdError) as refused:
                client.generate(**wrong)
            assert refused.value.code == "cannot_be_sent"
        for name in ("id", "op"):
            with pytest.raises(SemipdError) as refused:
                client.generate("a", **cast(Any, {name: 99}))
            assert (refused.value.code, refused.value.param) == ("invalid_value", name)
            with pytest.raises(SemipdError) as refused:
                await client.drain(**cast(Any, {name: "status"}))
            assert refused.value.code == "invalid_value"
        items = [item async for item in client.generate([97], max_tokens=2, logit_bias={5: 1})]
        submitted = (await daemon.engine())["submitted"][-1]
    assert sum(len(item.token_ids) for item in items) == 2
    assert "5" in str(submitted["logit_bias"])


# ---- the blocking client, with many open files ---------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[int]:
    """Numbers below it are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this process may not open 1200 files")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        null = os.open(os.devnull, os.O_RDONLY)
        taken = [null]
        stack.callback(lambda: list(map(os.close, taken)))
        while taken[-1] < 1030:
            taken.append(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3))
        yield 1030


def test_the_blocking_client_knows_large_file_numbers(tmp_path: Path, many_files: int) -> None:
    with scripted_process(tmp_path) as daemon, Client.connect(daemon.socket_path) as client:
        assert client._sock.fileno() > many_files
        with client.subscribe(interval_ms=100) as frames:
            assert [next(frames).state["state"] for _ in range(2)]
        with pytest.raises(SemipdError) as refused:
            client.generate("a", id=99)
        assert refused.value.code == "invalid_value"
        with pytest.raises(SemipdError) as refused:
            client.detokenize([5] * 300_000)
        assert refused.value.code == "cannot_be_sent"
        assert client.models()


def test_readiness_of_large_file_numbers(many_files: int) -> None:
    reading, writing = os.pipe()
    assert reading > many_files
    assert not any_readable([reading], 0)
    assert writable(writing, 0)
    os.write(writing, b"x")
    assert any_readable([reading], 5)
    os.close(writing)
    assert has_hung_up(reading)
    os.close(reading)
    assert has_hung_up(-1)


# ---- the end of one half -------------------------------------------------------------------------------


async def test_who_has_ended_his_half_reads_every_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        said = b"".join(
            encode_frame({"id": idx, "op": "generate", "prompt": [97], "max_tokens": 500}) for idx in range(8)
        )
        talk = await Talk.begin(daemon.socket_path, said)
        talk.writer.write_eof()
        frames = await talk.to_the_end()
        assert Counter(frame["id"] for frame in frames if "usage" in frame) == Counter(range(8))
        assert not [frame for frame in frames if "error" in frame]


@pytest.mark.parametrize("has_ended_half", [False, True])
async def test_the_stream_of_a_dead_client_is_cancelled(tmp_path: Path, has_ended_half: bool) -> None:
    async with running(tmp_path, max_steps=3) as daemon:
        said = encode_frame({"id": 1, "op": "generate", "prompt": [97], "max_tokens": 500})
        talk = await Talk.begin(daemon.socket_path, said + encode_frame({"id": 2, "op": "subscribe"}))
        await eventually(lambda: _live(daemon) == 1, "a live request")
        if has_ended_half:
            talk.writer.write_eof()
            await asyncio.sleep(0.3)
            assert _live(daemon) == 1
        talk.writer.transport.abort()
        await eventually(lambda: _live(daemon) == 0, "no live request")


def _live(daemon: Running) -> int:
    return len(daemon.services.table)


# ---- turns of the loop ---------------------------------------------------------------------------------


class Ticks:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._task.cancel()


async def test_pipelined_frames_are_served_one_in_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, start=False) as daemon:
        ticks, begun, refused = Ticks(), Counter[int](), Counter[int]()
        answer, refuse = (
            socket_connection.SocketConnection._answer,
            socket_connection.SocketConnection._refuse,
        )

        async def counted(self: Any, *args: Any) -> None:
            begun[ticks.count] += 1
            await answer(self, *args)

        async def counted_refusal(self: Any, *args: Any) -> None:
            refused[ticks.count] += 1
            await refuse(self, *args)

        monkeypatch.setattr(socket_connection.SocketConnection, "_answer", counted)
        monkeypatch.setattr(socket_connection.SocketConnection, "_refuse", counted_refusal)
        wrong = framed(b"\xc1") + encode_frame({})
        frames = b"".join(encode_frame({"id": idx, "op": "models"}) + wrong for idx in range(100))
        talk = await Talk.begin(daemon.socket_path, frames)
        talk.writer.write_eof()
        said = await talk.to_the_end()
        ticks.stop()
    assert len(said) == 300
    assert max((begun + refused).values()) <= 2


async def test_lists_take_turns() -> None:
    ticks, written = Ticks(), Counter[int]()
    listings, records = Listings(), [RequestRecord(str(idx), idx, 1, 1, 0) for idx in range(1000)]  # type: ignore[arg-type]

    def write(some: Any) -> int:
        written[ticks.count] += 1
        return len(some)

    several = await asyncio.gather(*(listings.written(records, write) for _ in range(20)))
    ticks.stop()
    assert all(sum(parts) == 1000 and max(parts) == SLICE_RECORDS for parts in several)
    assert max(written.values()) <= 2
    assert await listings.written([], write) == []


async def test_both_doors_list_alike(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        for _ in range(SLICE_RECORDS + 5):
            async for _item in client.generate([97], max_tokens=1):
                pass
        listed = await client.requests(limit=1000)
        several = await asyncio.gather(*(client.requests(limit=1000) for _ in range(5)))
        status, shown, _ = await daemon.ask("GET", "/v1/requests?limit=1000")
    assert status == 200
    seqs = [record["seq"] for record in listed]
    assert len(set(seqs)) == SLICE_RECORDS + 5
    assert [record["seq"] for record in shown["data"]] == seqs
    assert all([record["seq"] for record in again] == seqs for again in several)


# ---- bounds --------------------------------------------------------------------------------------------


async def test_a_text_is_counted_when_it_has_been_tokenized(tmp_path: Path) -> None:
    async with (
        running(tmp_path, settings={"server.max_body_bytes": 2**20}) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        assert (await client.tokenize("x" * 131_000, add_special_tokens=False)).count == 131_000
        with pytest.raises(SemipdError) as refused:
            await client.tokenize("x" * 131_073, add_special_tokens=False)
        assert refused.value.code == "request_too_large"
        assert "131073" in refused.value.message
        assert "131072" in refused.value.message
        status, answer, _ = await daemon.post({"prompt": "x" * 131_073}, "/tokenize")
        assert (status, answer["error"]["code"]) == (400, "request_too_large")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"protocol": True}, "protocol_version"),
        ({"protocol": 1.0}, "protocol_version"),
        ({"protocol": "1"}, "protocol_version"),
        ({"agent": 7}, "hello_expected"),
        ({"agent": None}, "hello_expected"),
        ({"agent": {"a": 1}}, "hello_expected"),
        ({"agent": "x" * 257}, "hello_expected"),
    ],
)
def test_a_hello_is_exact(said: dict[str, Any], code: str) -> None:
    check_hello(hello("test") | {"agent": "x" * 256})
    with pytest.raises(ProtocolError) as refused:
        check_hello(hello("test") | said)
    assert refused.value.code == code
