"""Every way in which the Unix socket ends a connection or refuses a frame says so, to whom it concerns."""

import asyncio
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.daemon import running
from support.daemon_process import scripted_process

from semipd.client import AsyncClient, Client
from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.peers import Peer
from semipd.daemon.servers import frame_stream, socket_connection
from semipd.daemon.servers.frame_stream import Arriving, answer_frame
from semipd.wire.client_protocol import hello
from semipd.wire.frames import HEADER, FrameReader, encode_frame
from semipd.wire.own_time import OwnTime

HELLO = encode_frame(hello("test"))


class Plain:
    """A connection that sends bytes, and reads frames to the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path, said: bytes = b"") -> "Plain":
        plain = cls(*await asyncio.open_unix_connection(path))
        plain.writer.write(said)
        return plain

    async def frames(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            data = await self.reader.read()
        self.writer.close()
        return FrameReader().feed(data)

    async def first(self, count: int) -> list[dict[str, Any]]:
        """Behind the hello; then we close."""
        reader, messages = FrameReader(), list[dict[str, Any]]()
        async with asyncio.timeout(30):
            while len(messages) <= count:
                messages += reader.feed(await self.reader.read(65536))
        self.writer.close()
        return messages[1:]

    async def why(self) -> str:
        """The code of the last words."""
        last = (await self.frames())[-1]
        assert last["id"] is None
        assert last["closing"] is True
        return str(last["error"]["code"])


@pytest.mark.parametrize("said", [b"", HELLO[:2], HELLO[:-1]])
async def test_a_hello_that_does_not_come_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(socket_connection, "HELLO_LIMIT_S", 0.3)
    async with running(tmp_path, start=False) as daemon:
        late = await Plain.connect(daemon.socket_path, said)
        assert await late.why() == "hello_expected"


async def test_a_frame_that_stops_halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_stream, "FRAME_LIMIT_S", 0.3)
    async with running(tmp_path, start=False) as daemon:
        half = await Plain.connect(daemon.socket_path, HELLO + HELLO[:-1])
        assert await half.why() == "request_timeout"
        cut = await Plain.connect(daemon.socket_path, HELLO + HELLO[:-1])
        cut.writer.write_eof()
        assert await cut.why() == "malformed_frame"


async def test_last_words_reach_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async with running(tmp_path, start=False, settings={"limits.max_connections": 1}) as daemon:
        wrong = await Plain.connect(daemon.socket_path, b"\xff" * 4 + bytes(2**20))
        assert await wrong.why() == "frame_too_large"
        async with await AsyncClient.connect(daemon.socket_path):
            turned_away = await Plain.connect(daemon.socket_path, HELLO + bytes(2**20))
            assert await turned_away.why() == "too_many_connections"
            with pytest.raises(SemipdError) as refused:
                await AsyncClient.connect(daemon.socket_path)
    assert (refused.value.code, refused.value.retry_after_s) == ("too_many_connections", 1)


async def test_a_reader_of_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_stream, "WRITE_LIMIT_S", 0.3)
    async with running(tmp_path, start=False) as daemon:
        requests = b"".join(encode_frame({"id": idx, "op": "x" * 60}) for idx in range(4000))
        deaf, deaf_writer = await asyncio.open_unix_connection(daemon.socket_path, limit=1)
        deaf_writer.write(HELLO + requests)
        await asyncio.sleep(1.0)
        last = FrameReader().feed(await deaf.read())[-1]
        deaf_writer.close()
    assert (last["id"], last["closing"], last["error"]["code"]) == (None, True, "slow_reader")


async def test_the_end_of_the_daemon_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        idle = await Plain.connect(daemon.socket_path, HELLO)
        client = await AsyncClient.connect(daemon.socket_path)
    assert await idle.why() == "shutting_down"
    await client.closed()
    with pytest.raises(SemipdError) as gone:
        await client.models()
    assert gone.value.code == "shutting_down"
    await client.close()


async def test_unfinished_frames_are_bounded_together() -> None:
    arriving = Arriving()
    for _ in range(64):
        arriving.change(0, 4 * 2**20)
    with pytest.raises(SemipdError) as refused:
        arriving.change(0, 4 * 2**20)
    assert refused.value.code == "overloaded"
    arriving.change(0, 100)
    assert arriving.num_bytes == 65 * 4 * 2**20 + 100


async def test_the_time_of_a_stalled_loop_does_not_count() -> None:
    """What arrives while we are stopped is read before anybody is accused."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    for _ in range(3):
        async with OwnTime(0.5):
            asyncio.get_running_loop().call_later(0.01, time.sleep, 1.0)
            asyncio.get_running_loop().call_later(0.005, theirs.send, b"x")
            await asyncio.sleep(0.02)
            assert await reader.read(1) == b"x"
    with pytest.raises(TimeoutError):
        async with OwnTime(0.1):
            await reader.read(1)
    theirs.close()
    writer.close()


def test_a_daemon_that_was_stopped_accuses_nobody(tmp_path: Path) -> None:
    with scripted_process(tmp_path) as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket_path))
        client.settimeout(30)
        assert client.recv(4096)
        os.kill(daemon.process.pid, signal.SIGSTOP)
        time.sleep(5.5)
        client.sendall(HELLO + encode_frame({"id": 1, "op": "models"}))
        os.kill(daemon.process.pid, signal.SIGCONT)
        [answer] = FrameReader().feed(client.recv(65536))
    assert answer["models"][0]["object"] == "model"


# ---- ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "answered"),
    [(3.0, 3), (-0.0, 0), (2**64 - 1, 2**64 - 1), (-(2.0**63), -(2**63)), ("x" * 256, "x" * 256), ("", "")],
)
async def test_whole_numbers_and_short_texts_are_ids(tmp_path: Path, given: Any, answered: Any) -> None:
    async with running(tmp_path, start=False) as daemon:
        plain = await Plain.connect(daemon.socket_path, HELLO)
        plain.writer.write(encode_frame({"id": given, "op": "models"}))
        plain.writer.write(encode_frame({"id": "next", "op": "cancel", "target": 7.0}))
        [answer, other] = await plain.first(2)
    assert answer["id"] == answered
    assert type(answer["id"]) is type(answered)
    assert other == {"id": "next", "cancelled": False}


@pytest.mark.parametrize("given", [True, None, 1.5, 1e300, float("nan"), "x" * 257, [1], {}, b"x"])
async def test_what_is_no_id_is_answered_to_nobody(tmp_path: Path, given: Any) -> None:
    async with running(tmp_path, start=False) as daemon:
        plain = await Plain.connect(daemon.socket_path, HELLO)
        plain.writer.write(encode_frame({"id": given, "op": "models"}))
        plain.writer.write(encode_frame({"id": 2, "op": "models"}))
        [refused, answer] = await plain.first(2)
    assert (refused["id"], refused["error"]["param"], "closing" in refused) == (None, "id", False)
    assert answer["models"]


@pytest.mark.parametrize("second", [{"op": "models"}, {"op": "dance"}, {"op": "generate", "zzz": 1}])
async def test_the_stream_of_a_repeated_id_goes_on(tmp_path: Path, second: dict[str, Any]) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        stream = client.generate([97], max_tokens=400)
        first = await anext(stream)
        client._writer.write(encode_frame({"id": float(stream.id), **second}))
        items = [first, *[item async for item in stream]]
        assert sum(len(item.token_ids) for item in items) == 400
        assert await client.models(), "the connection lives"
        raw = await Plain.connect(daemon.socket_path, HELLO)
        generate = {"op": "generate", "prompt": [97], "max_tokens": 400}
        raw.writer.write(encode_frame({"id": 1, **generate}) + encode_frame({"id": 1.0, **second}))
        async with asyncio.timeout(30):
            messages, frames = list[dict[str, Any]](), FrameReader()
            while not any("usage" in message for message in messages):
                messages += frames.feed(await raw.reader.read(65536))
        raw.writer.close()
    [error] = [message for message in messages if "error" in message]
    assert (error["id"], error["duplicate"], error["error"]["code"]) == (None, 1, "duplicate_id")
    assert "closing" not in error


# ---- sizes -----------------------------------------------------------------------------------------------


def test_no_frame_out_is_larger_than_a_client_reads() -> None:
    for message in ({"id": 1, "tokens": [0] * (2**20 + 1)}, {"id": 1, "prompt": "x" * 2**22}):
        with pytest.raises(SemipdError) as refused:
            answer_frame(message)
        assert refused.value.code == "answer_too_large"
    assert answer_frame({"id": 1, "prompt": "x" * (2**22 - 100)})


async def test_an_answer_too_large_harms_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        with pytest.raises(SemipdError) as refused:
            answer_frame({"id": 1, "tokens": [0] * (2**20 + 1)})
        assert refused.value.code == "answer_too_large"
        with pytest.raises(SemipdError) as refused:
            await client.tokenize("x" * (2**20 + 1))
        assert refused.value.code == "request_too_large"
        with pytest.raises(SemipdError) as refused:
            await client.tokenize("x" * 2**22)
        assert refused.value.code == "cannot_be_sent"
        for unsendable in (2**70, object(), "\ud800"):
            with pytest.raises(SemipdError) as refused:
                client.generate("a", seed=unsendable)
            assert refused.value.code == "cannot_be_sent"
        assert (await client.tokenize("né")).count == 4


async def test_millions_of_empty_maps_are_not_built(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        for field in ("messages", "chat_template_kwargs"):
            body = {"id": 1, "op": "generate", field: [{}] * 70_000}
            plain = await Plain.connect(daemon.socket_path, HELLO + encode_frame(body))
            [refused] = await plain.first(1)
            assert (refused["id"], refused["error"]["code"]) == (1, "malformed_frame")
            assert "closing" not in refused


async def test_guests_leave_room_for_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = {"limits.max_connections": 8}
    async with running(tmp_path, start=False, settings=limit) as daemon, AsyncExitStack() as stack:
        daemon.services.auth.guests_gid = 4321
        guest = Peer(7, os.getuid() + 5, frozenset({4321}))
        monkeypatch.setattr(peers, "peer_of", lambda _: guest)
        for _ in range(7):
            await stack.enter_async_context(await AsyncClient.connect(daemon.socket_path))
        with pytest.raises(SemipdError) as refused:
            await AsyncClient.connect(daemon.socket_path)
        assert refused.value.code == "too_many_connections"
        monkeypatch.undo()
        own = await stack.enter_async_context(await AsyncClient.connect(daemon.socket_path))
        assert await own.models()


# ---- clients ---------------------------------------------------------------------------------------------


def served_by(tmp_path: Path, *frames: bytes) -> tuple[socket.socket, Path]:
    """A listener whose connections, taken or not, can be counted on to be there."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "odd.sock"))
    listener.listen(8)
    return listener, tmp_path / "odd.sock"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\xff" * 8, "frame_too_large"),
        (encode_frame({"error": 5}), "malformed_answer"),
        (encode_frame({"op": "hello", "protocol": 1})[:-3], "connection_lost"),
        (encode_frame({"op": "what"}), "hello_expected"),
    ],
)
async def test_clients_name_what_a_stranger_says(tmp_path: Path, said: bytes, code: str) -> None:
    listener, path = served_by(tmp_path)

    async def odd(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(odd, sock=listener)
    for connect in (lambda: AsyncClient.connect(path), lambda: asyncio.to_thread(Client.connect, path)):
        with pytest.raises(SemipdError) as refused:
            await connect()
        assert refused.value.code == code
    server.close()
    await server.wait_closed()


async def test_clients_name_answers_without_their_fields(tmp_path: Path) -> None:
    listener, path = served_by(tmp_path)

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_frame({"op": "hello", "protocol": 1}))
        for _ in ("hello", "models"):
            await reader.readexactly(int.from_bytes(await reader.readexactly(HEADER.size)))
        writer.write(encode_frame({"id": [1]}) + encode_frame({"id": 1, "zzz": 1}))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(odd, sock=listener)
    async with await AsyncClient.connect(path) as client:
        with pytest.raises(SemipdError) as refused:
            await client.models()
    assert refused.value.code == "malformed_answer"
    assert client.greeting.model is None
    server.close()
    await server.wait_closed()


async def test_a_late_hello_is_said_again(tmp_path: Path) -> None:
    """By a client that the machine gave no time between connecting and writing."""
    listener, path = served_by(tmp_path)
    times = list[int]()

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(1)
        late = {"id": None, "closing": True, "error": {"code": "hello_expected", "message": "Late."}}
        writer.write(encode_frame(late if len(times) % 2 else {"op": "hello", "protocol": 1}))
        await reader.read(65536)
        writer.close()

    server = await asyncio.start_unix_server(strict, sock=listener)
    await (await AsyncClient.connect(path)).close()
    (await asyncio.to_thread(Client.connect, path)).close()
    assert len(times) == 4
    server.close()
    await server.wait_closed()


def test_a_full_queue_of_connections_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semipd.client.blocking.CONNECT_LIMIT_S", 0.2)
    listener, path = served_by(tmp_path)
    listener.listen(0)
    with listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        with pytest.raises(SemipdError) as refused:
            Client.connect(path)
    assert refused.value.code == "daemon_silent"
    with pytest.raises(SemipdError) as refused:
        Client.connect(path)
    assert refused.value.code == "daemon_not_running"
