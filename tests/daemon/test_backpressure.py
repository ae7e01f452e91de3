"""Clients that read slowly: they cost little memory, slow nobody, and learn where they were cut off."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until

from semipd.client import AsyncClient
from semipd.core.sampling import SamplingParams
from semipd.daemon.access.callers import OPERATOR
from semipd.daemon.access.terms import DEFAULT_SERVICE
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.rules import RequestRules
from semipd.daemon.web import streaming
from semipd.daemon.web.connections import UNSENT_BYTES
from semipd.wire.client_protocol import hello
from semipd.wire.frames import FrameReader, encode_frame

LIMIT = 64
PROMPT = list(b"abcdefghijklmnopqrstuvwxyz")
SETTINGS = {"limits.max_unread_tokens": LIMIT}


@asynccontextmanager
async def deaf_stream(daemon: Running, **body: Any) -> AsyncIterator[socket.socket]:
    """A client that sends its request and reads nothing."""
    port = int(daemon.url.rpartition(":")[2])
    body = {"prompt": PROMPT, "max_tokens": 4000, "stream": True} | body
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield client


async def read_all(client: socket.socket) -> str:
    loop, pieces = asyncio.get_running_loop(), [b""]
    async with asyncio.timeout(30):
        while b"0\r\n\r\n" not in pieces[-1][-5:]:
            pieces.append(await loop.sock_recv(client, 65536))
            assert pieces[-1], "closed without an end"
    return b"".join(pieces).decode()


def live(daemon: Running) -> list[LiveRequest]:
    return list(daemon.services.table._live.values())


def text_of(tokens: int) -> str:
    return (bytes(PROMPT).decode() * (tokens // len(PROMPT) + 1))[:tokens]


async def test_a_stream_nobody_reads_is_ended_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS, step_ms=1) as daemon:
        async with deaf_stream(daemon) as client:
            await until(lambda: any(one.is_over for one in live(daemon)))
            [one] = live(daemon)
            num = len(one.tokens)
            assert num - one.num_read == LIMIT + 1, "that many are kept, and no more"
            assert num < 4000
            await daemon.engine_says(lambda seen: seen["live"] == 0)
            assert await daemon.complete(prompt=[97], max_tokens=3), "nobody else is held up"
            text = await read_all(client)
        [record, _] = daemon.services.history.records()
    events = [line[6:] for line in text.replace("\r\n", "\n").split("\n") if line.startswith("data: ")]
    told = [json.loads(event) for event in events]
    assert told[-1]["error"]["code"] == "slow_reader"
    assert "".join(event["choices"][0]["text"] for event in told[:-1]) == text_of(num)
    assert (record.error_code, record.sent_tokens) == ("slow_reader", num)


async def test_what_a_deaf_stream_costs(tmp_path: Path) -> None:
    """Bytes in our buffer and in the kernel's, and tokens behind them."""
    async with running(tmp_path, settings=SETTINGS, step_ms=1) as daemon:
        async with deaf_stream(daemon), deaf_stream(daemon), deaf_stream(daemon):
            await until(lambda: len(live(daemon)) == 3 and all(one.is_over for one in live(daemon)))
            sent = [one.num_read for one in live(daemon)]
        await until(lambda: not live(daemon))
    bytes_per_token = 260  # of an event
    for num_tokens in sent:
        assert num_tokens * bytes_per_token < 8 * UNSENT_BYTES


async def test_a_reader_that_takes_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WRITE_LIMIT_S", 0.3)
    async with running(tmp_path, settings=SETTINGS, step_ms=1) as daemon, deaf_stream(daemon) as client:
        await until(lambda: bool(live(daemon)))
        await until(lambda: not live(daemon))
        with pytest.raises((ConnectionError, AssertionError)):
            await read_all(client)


async def test_an_answer_without_streaming_is_never_slow(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS, step_ms=1) as daemon:
        answer = await daemon.complete(prompt=PROMPT, max_tokens=2000)
    assert answer["usage"]["completion_tokens"] == 2000


async def test_streams_on_a_socket_nobody_reads(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS, step_ms=1) as daemon:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, os.fspath(daemon.socket_path))
            frames = [hello("deaf")]
            frames += [{"id": n, "op": "generate", "prompt": PROMPT, "max_tokens": 4000} for n in range(8)]
            await loop.sock_sendall(deaf, b"".join(map(encode_frame, frames)))
            await until(lambda: len(live(daemon)) == 8 and all(one.is_over for one in live(daemon)))
            assert all(len(one.tokens) - one.num_read <= LIMIT + 1 for one in live(daemon))
            async with await AsyncClient.connect(daemon.socket_path) as client:
                items = [item async for item in client.generate([98], max_tokens=5)]
            assert sum(len(item.token_ids) for item in items) == 5
            reader, messages = FrameReader(), list[dict[str, Any]]()
            async with asyncio.timeout(30):
                while sum("error" in message for message in messages) < 8:
                    messages += reader.feed(await loop.sock_recv(deaf, 65536))
    for number in range(8):
        of_one = [message for message in messages if message.get("id") == number]
        assert of_one[-1]["error"]["code"] == "slow_reader"
        text = "".join(message["text"] for message in of_one[:-1])
        assert text == text_of(len(text)), "a gap"
        assert len(text) > LIMIT


def test_tokens_with_alternatives_weigh_more() -> None:
    def unread(**params: Any) -> int:
        sampling = SamplingParams(max_tokens=1, seed=1, **params)
        return RequestRules(max_unread_tokens=4096).terms(OPERATOR, DEFAULT_SERVICE, sampling).max_unread

    assert (unread(), unread(logprobs=0), unread(logprobs=20)) == (4096, 2048, 4096 // 22)
