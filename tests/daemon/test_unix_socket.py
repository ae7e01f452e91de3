"""The Unix socket, through the client and with raw bytes."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.byte_model import BOS, ByteModel
from support.daemon import running

from semipd.client import AsyncClient, GenerateStream
from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.peers import Peer
from semipd.daemon.requests.schema import MAX_ID_CHARS
from semipd.wire.client_protocol import hello
from semipd.wire.frames import MAX_FRAME_BYTES, FrameReader, encode_frame


async def collect(stream: GenerateStream) -> tuple[str, list[int], str | None]:
    items = [item async for item in stream]
    assert all(item.finish_reason is None for item in items[:-1])
    text = "".join(item.text for item in items)
    return text, [token for item in items for token in item.token_ids], items[-1].finish_reason


class Raw:
    """A connection that says whatever it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = FrameReader()
        self.received: list[dict[str, Any]] = []

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path, greet: bool = True) -> AsyncIterator["Raw"]:
        raw = cls(*await asyncio.open_unix_connection(path))
        try:
            assert (await raw.next())["op"] == "hello"
            if greet:
                raw.say(hello("test"))
            yield raw
        finally:
            raw.writer.transport.abort()

    def say(self, message: dict[str, Any]) -> None:
        self.writer.write(encode_frame(message))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while not self.received:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self.received += self.frames.feed(data)
        return self.received.pop(0)

    async def refused(self) -> dict[str, Any]:
        """The last frame before the daemon closes: an error of the connection."""
        frame = await self.next()
        with pytest.raises(EOFError):
            await self.next()
        assert frame["id"] is None
        error: dict[str, Any] = frame["error"]
        return error


async def test_generate_from_text_tokens_and_messages(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        ids = await collect(client.generate(list("né".encode()), max_tokens=6))
        text = await collect(client.generate("abc", max_tokens=5))
        chat = await collect(
            client.generate(messages=[{"role": "user", "content": "x"}], max_tokens=4, seed=3)
        )
        stopped = await collect(client.generate(list(b"one two "), stop=["o t", "e t"]))
        seen = await daemon.engine()
    assert ids == ("néné", list("néné".encode()), "length")
    assert text == ("abc", [BOS, *b"abc", BOS], "length")
    assert chat[0] == "<use"
    assert stopped == ("on", list(b"one t"), "stop")
    assert seen["submitted"][2]["prompt"] == list(b"<user>x")
    assert seen["submitted"][2]["seed"] == 3
    assert seen["submitted"][3]["max_tokens"] == 4096 - 8


async def test_usage_comes_with_the_last_item(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        items = [item async for item in client.generate([97, 98], max_tokens=5)]
    assert items[-1].usage == {
        "prompt_tokens": 2,
        "completion_tokens": 5,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


async def test_many_requests_in_flight_on_one_connection(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        prompts = [f"number {number}. " for number in range(40)]
        streams = [client.generate(list(prompt.encode()), max_tokens=3 * len(prompt)) for prompt in prompts]
        status = await client.status()
        results = await asyncio.gather(*map(collect, streams))
    assert [text for text, _, _ in results] == [prompt * 3 for prompt in prompts]
    assert status["state"] == "ready"


async def test_cancel_ends_one_stream_only(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        doomed = client.generate([97], max_tokens=4000)
        other = client.generate([98], max_tokens=50)
        await anext(doomed)
        assert await doomed.cancel()
        items = [item async for item in doomed]
        assert items[-1].finish_reason == "cancelled"
        assert (await collect(other))[0] == "b" * 50
        assert not await client.cancel(doomed.id)
        seen = await daemon.engine_says(lambda status: status["live"] == 0)
        assert seen["cancelled"] == [1]


async def test_leaving_a_stream_cancels_it(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_steps=5) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        async with client.generate([97], max_tokens=4000) as stream:
            await anext(stream)
        await daemon.engine_says(lambda status: status["live"] == 0)
        assert (await collect(client.generate([98], max_tokens=2)))[0] == "bb"


async def test_a_connection_that_closes_cancels_all_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=5) as daemon:
        client = await AsyncClient.connect(daemon.socket_path)
        streams = [client.generate([97], max_tokens=4000) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        await client.close()
        seen = await daemon.engine_says(lambda status: status["live"] == 0)
        assert sorted(seen["cancelled"]) == [1, 2, 3]
        assert len(daemon.services.table) == 0


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        ({"id": 1, "op": "dance"}, "unknown_operation", "op"),
        ({"id": 1}, "unknown_operation", "op"),
        ({"id": 1, "op": ["x"]}, "unknown_operation", "op"),
        ({"id": 1, "op": "generate", "prompt": "a", "zzz": 1}, "unknown_field", "zzz"),
        ({"id": 1, "op": "status", "prompt": "a"}, "unknown_field", "prompt"),
        ({"id": 1, "op": "generate"}, "invalid_value", "prompt"),
        (
            {"id": 1, "op": "generate", "prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            "invalid_value",
            "prompt",
        ),
        ({"id": 1, "op": "generate", "prompt": [-1]}, "invalid_value", "prompt"),
        ({"id": 1, "op": "generate", "prompt": ["a", "b"]}, "invalid_value", "prompt"),
        ({"id": 1, "op": "generate", "prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
        (
            {"id": 1, "op": "generate", "prompt": "a", "max_tokens": 4096},
            "context_length_exceeded",
            "max_tokens",
        ),
        ({"id": 1, "op": "cancel"}, "missing_field", "target"),
        ({"op": "status"}, "missing_field", "id"),
        ({"id": [1], "op": "status"}, "invalid_value", "id"),
        ({"id": True, "op": "status"}, "invalid_value", "id"),
        ({"id": "x" * (MAX_ID_CHARS + 1), "op": "status"}, "invalid_value", "id"),
        ({"id": 1, "op": "status", "int": 1}, "unknown_field", "int"),
        ({"id": 1, "op": "status", "a-b[c]": 1}, "unknown_field", "a-b[c]"),
    ],
)
async def test_bad_requests_are_answered_and_the_connection_lives(
    tmp_path: Path, request_: dict[str, Any], code: str, param: str
) -> None:
    async with running(tmp_path) as daemon, Raw.connect(daemon.socket_path) as raw:
        raw.say(request_)
        answer = await raw.next()
        assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
        assert "constrained" not in answer["error"]["message"]
        assert code != "unknown_field" or f"There is no field {param}." in answer["error"]["message"]
        assert answer["id"] == (1 if request_.get("id") == 1 and request_["id"] is not True else None)
        raw.say({"id": "two", "op": "status"})
        assert (await raw.next())["status"]["state"] == "ready"


async def test_an_id_in_flight_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=1) as daemon, Raw.connect(daemon.socket_path) as raw:
        raw.say({"id": 1, "op": "generate", "prompt": [97]})
        await raw.next()
        raw.say({"id": 1, "op": "status"})
        assert (await raw.next())["error"]["code"] == "duplicate_id"


async def test_no_chat_template(tmp_path: Path) -> None:
    async with (
        running(tmp_path, ByteModel(chat_template=None)) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        with pytest.raises(SemipdError) as refused:
            await collect(client.generate(messages=[{"role": "user", "content": "x"}]))
    assert refused.value.code == "no_chat_template"


@pytest.mark.parametrize(
    ("raw_bytes", "code"),
    [
        (struct.pack(">I", MAX_FRAME_BYTES + 1), "frame_too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_large"),
    ],
)
async def test_what_is_no_frame_ends_the_connection(tmp_path: Path, raw_bytes: bytes, code: str) -> None:
    async with running(tmp_path, max_steps=1) as daemon:
        async with Raw.connect(daemon.socket_path) as raw:
            raw.writer.write(raw_bytes)
            assert (await raw.refused())["code"] == code
        async with await AsyncClient.connect(daemon.socket_path) as client:
            assert (await client.status())["state"] == "ready"


async def test_other_protocols_and_missing_hellos_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as daemon:
        async with Raw.connect(daemon.socket_path, greet=False) as raw:
            raw.say({"op": "hello", "protocol": 99, "agent": "future"})
            error = await raw.refused()
            assert error["code"] == "protocol_version"
            assert "99" in error["message"]
        async with Raw.connect(daemon.socket_path, greet=False) as raw:
            raw.say({"id": 1, "op": "status"})
            assert (await raw.refused())["code"] == "hello_expected"
        monkeypatch.setattr("semipd.wire.client_protocol.PROTOCOL_VERSION", 2)
        async with Raw.connect(daemon.socket_path, greet=False) as raw:
            raw.say({"op": "hello", "protocol": 1, "agent": "old", "later": "addition"})
            assert (await raw.refused())["code"] == "protocol_version"


async def test_a_peer_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "peer_of", lambda _socket: Peer(1, os.getuid() + 1))
    async with running(tmp_path) as daemon:
        with pytest.raises(SemipdError) as refused:
            await AsyncClient.connect(daemon.socket_path)
    assert refused.value.code == "peer_not_allowed"


async def test_shutdown_answers_then_begins(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        await client.shutdown()
        async with asyncio.timeout(20):
            assert (await daemon.stop_reasons.get()).endswith(f"(pid {os.getpid()}) asked for it")


async def test_streams_under_way_learn_of_the_shutdown(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=3) as daemon:
        client = await AsyncClient.connect(daemon.socket_path)
        stream = client.generate([97], max_tokens=4000)
        await anext(stream)
    with pytest.raises(SemipdError) as ended:
        await collect(stream)
    assert ended.value.code == "shutting_down"
    await client.closed()
    with pytest.raises(SemipdError) as gone:
        client.generate("a")
    assert gone.value.code == "shutting_down"
    await client.close()


async def test_a_client_that_reads_nothing_delays_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, step_ms=0) as daemon:
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(os.fspath(daemon.socket_path))
        deaf.sendall(encode_frame(hello("deaf")))
        for number in range(20):
            deaf.sendall(encode_frame({"id": number, "op": "generate", "prompt": [97], "max_tokens": 4000}))
        await daemon.engine_says(lambda status: len(status["submitted"]) == 20 and status["live"] == 0)
        async with await AsyncClient.connect(daemon.socket_path) as client:
            assert (await collect(client.generate([98], max_tokens=5)))[0] == "b" * 5
        deaf.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SemipdError) as refused:
        await AsyncClient.connect(tmp_path / "none.sock")
    assert refused.value.code == "daemon_not_running"


async def test_too_long_an_id_says_its_limit(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Raw.connect(daemon.socket_path) as raw:
        raw.say({"id": "x" * (MAX_ID_CHARS + 1), "op": "status"})
        error = (await raw.next())["error"]
    assert error["message"].startswith(f"id: String should have at most {MAX_ID_CHARS} characters; got 'xxx")
    assert error["hint"].startswith("An id is a whole number")
