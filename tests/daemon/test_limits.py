"""Hosts, sizes, times, numbers of connections and rates: what the door lets through of those who may come."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.keys import ANN, BOB, OPS, key_settings

from semipd.client import AsyncClient
from semipd.core.errors import SemipdError
from semipd.daemon.access.rates import MAX_BUCKETS, RateLimiter
from semipd.daemon.servers import guard


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1", True),
        ("localhost:99", True),
        ("[::1]:8808", True),
        ("api.example", True),
        ("API.example:443", True),
        ("evil.example", False),
        ("", False),
        ("10.0.0.1", False),
    ],
)
async def test_hosts(tmp_path: Path, host: str, is_allowed: bool) -> None:
    async with running(tmp_path, settings={"server.allowed_hosts": "api.example, other.example"}) as daemon:
        status, answer, _ = await daemon.ask("DELETE", "/v1/drain", Host=host)
        assert status == (200 if is_allowed else 403)
        if not is_allowed:
            assert "server.allowed_hosts" in answer["error"]["message"]


async def test_no_cors(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        status, _, headers = await daemon.ask("OPTIONS", "/v1/completions", Origin="http://evil.example")
        assert status == 405
        _, _, more = await daemon.ask("GET", "/v1/models", Origin="http://evil.example")
    assert not [name for name in (*headers, *more) if name.lower().startswith("access-control")]


@asynccontextmanager
async def raw(daemon: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(daemon.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def said(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Everything until the daemon closes the connection."""
    async with asyncio.timeout(20):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def test_a_head_that_does_not_come(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"limits.head_limit_s": 0.3}) as daemon:
        async with raw(daemon) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: lo")
            status, answer = await said(reader)
        assert (status, answer["error"]["code"]) == (408, "request_timeout")
        await asyncio.sleep(0.5)
        assert (await daemon.ask("GET", "/health"))[0] == 200
        async with raw(daemon) as (reader, writer):  # one that came keeps its connection
            request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            for _ in range(2):
                writer.write(request)
                await reader.readuntil(b'{"status": "ok"}')
                await asyncio.sleep(0.5)


async def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    async with (
        running(tmp_path, settings={"limits.body_limit_s": 0.3}) as daemon,
        raw(daemon) as (reader, writer),
    ):
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 100\r\nConnection: close\r\n\r\n{{".encode())
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"}}")
    assert b" 408 " in answer
    assert b"request_timeout" in answer


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"NONSENSE\r\n\r\n", (400, "malformed_http")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400, "malformed_http")),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (431, "headers_too_large")),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 5000 + b"\r\n\r\n", (431, "headers_too_large")),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n", (400, "malformed_http")),
    ],
)
async def test_what_is_no_http_is_answered_in_our_shape(
    tmp_path: Path, request_: bytes, code: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, settings={"limits.max_header_bytes": 2000}) as daemon:
        async with raw(daemon) as (reader, writer):
            writer.write(request_)
            status, answer = await said(reader)
        assert (status, answer["error"]["code"]) == code
        assert (await daemon.ask("GET", "/health"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_bound_on_bodies_that_are_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_ARRIVING_BYTES", 150_000)
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with running(tmp_path) as daemon:
        async with raw(daemon) as (_, slow):
            slow.write(f"{head}Content-Length: 90000\r\n\r\n{{".encode())
            await until_status(daemon, 503)
            assert (await daemon.post({"prompt": "a"}, "/tokenize"))[0] == 200, (
                "there is room for a small one"
            )
        await until_status(daemon, 200)


async def until_status(daemon: Running, status: int) -> None:
    """What becomes of a body of 80,000 bytes, when the daemon has seen what the others do."""
    async with asyncio.timeout(20):
        while (await daemon.post({"prompt": "a" * 80_000}, "/tokenize"))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_packed_bodies_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        packed = gzip.compress(b'{"prompt": "' + b"a" * 50_000_000 + b'"}')
        status, answer, _ = await daemon.post(packed, **{"Content-Encoding": "gzip"})
        assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
        assert (await daemon.ask("GET", "/health", **{"Content-Encoding": "gzip"}))[0] == 200
        status, _, _ = await daemon.post({"prompt": "a", "max_tokens": 1}, **{"Content-Encoding": "identity"})
        assert status == 200


async def test_a_bound_on_connections(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"limits.max_connections": 3}) as daemon:
        async with raw(daemon), raw(daemon), raw(daemon):
            async with raw(daemon) as (reader, _writer):
                status, answer = await said(reader)
            assert (status, answer["error"]["code"]) == (503, "too_many_connections")
            clients = [await AsyncClient.connect(daemon.socket_path) for _ in range(3)]
            with pytest.raises(SemipdError) as refused:
                await AsyncClient.connect(daemon.socket_path)
            assert refused.value.code == "too_many_connections"
            for client in clients:
                await client.close()
        async with asyncio.timeout(20):
            while True:  # until the daemon has noticed that they are closed
                async with raw(daemon) as (reader, writer):
                    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if (await said(reader))[0] == 200:
                        break


# ---- rates -------------------------------------------------------------------------------------------


def test_token_buckets() -> None:
    now_s = [0.0]
    limiter = RateLimiter(2.0, 3, lambda: now_s[0])

    def takes(who: str) -> float | None:
        try:
            limiter.take(who)
        except SemipdError as error:
            return error.retry_after_s if error.code == "rate_limited" else -1
        return None

    assert [takes("a") for _ in range(5)] == [None, None, None, 0.5, 0.5]
    assert takes("b") is None
    now_s[0] += 0.25
    assert takes("a") == pytest.approx(0.25)
    now_s[0] += 0.25
    assert [takes("a"), takes("a")] == [None, 0.5]
    now_s[0] += 100
    assert [takes("a") for _ in range(4)] == [None, None, None, 0.5]


def test_callers_remembered_are_bounded() -> None:
    limiter = RateLimiter(1.0, 1, lambda: 0.0)
    for number in range(MAX_BUCKETS + 10):
        limiter.take(str(number))
    assert len(limiter._buckets) == MAX_BUCKETS


async def test_rates_by_key_and_by_address(tmp_path: Path) -> None:
    slow = {"limits.requests_per_s": 0.01, "limits.burst": 2}
    async with running(tmp_path, settings=key_settings(tmp_path) | slow) as daemon:
        answers = [await daemon.ask("GET", "/v1/models", ANN) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        assert answers[2][1]["error"]["code"] == "rate_limited"
        assert 90 <= int(answers[2][2]["Retry-After"]) <= 100
        assert (await daemon.ask("GET", "/v1/models", BOB))[0] == 200
        assert [(await daemon.ask("GET", "/v1/status", OPS))[0] for _ in range(5)] == [200] * 5
        guesses = [(await daemon.ask("GET", "/v1/models", "wrong-key-0123456789"))[0] for _ in range(3)]
        assert guesses == [401, 401, 429]
        assert [(await daemon.ask("GET", "/health"))[0] for _ in range(5)] == [200] * 5
    async with running(tmp_path, settings=slow) as daemon:
        assert [(await daemon.ask("GET", "/v1/models"))[0] for _ in range(3)] == [200, 200, 429]
