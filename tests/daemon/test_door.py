"""The door over HTTP and the socket: keys, whose requests are whose, hosts, sizes, times and rates."""

import asyncio
import gzip
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until
from support.daemon_process import scripted_process
from support.keys import ANN, BOB, OPS, key_settings, write_keys

from semipd.client import AsyncClient
from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.daemon import unix_socket
from semipd.daemon.addresses import claim_http, claim_socket
from semipd.daemon.limits import MAX_BUCKETS, RateLimiter
from semipd.daemon.peers import Peer, group_id, peer_of


async def ask(daemon: Running, method: str, path: str, key: str | None = None, **headers: str) -> Any:
    """Status, body and headers."""
    sent = {"Content-Type": "application/json"} if method != "GET" else {}
    sent |= headers | ({"Authorization": f"Bearer {key}"} if key else {})
    data = b"{}" if method in ("POST", "PUT", "PATCH") else None
    async with daemon.http.request(method, daemon.url + path, headers=sent, data=data) as response:
        text = await response.text()
        body = json.loads(text) if response.content_type == "application/json" else text
        return response.status, body, response.headers


async def complete(daemon: Running, key: str, **body: Any) -> dict[str, Any]:
    status, answer, _ = await daemon.post(body, Authorization=f"Bearer {key}")
    assert status == 200, answer
    return answer


async def test_keys_over_http(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        for path in ("/health", "/ready", "/openapi.json"):
            assert (await ask(daemon, "GET", path))[0] == 200
        for path in ("/v1/models", "/v1/requests", "/metrics", "/v1/status", "/v1/events", "/v1/partition"):
            status, answer, headers = await ask(daemon, "GET", path)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), path
            assert headers["WWW-Authenticate"] == "Bearer"
        assert (await ask(daemon, "POST", "/v1/completions"))[0] == 401
        assert (await ask(daemon, "GET", "/v1/models", ANN))[0] == 200
        assert (await ask(daemon, "GET", "/v1/models", "wrong-key-0123456789"))[0] == 401
        for path in ("/metrics", "/v1/status", "/v1/drain"):
            status, answer, _ = await ask(daemon, "GET", path, ANN)
            assert (status, answer["error"]["code"]) == (403, "operator_required"), path
            assert (await ask(daemon, "GET", path, OPS))[0] == 200
        assert (await ask(daemon, "POST", "/v1/drain", ANN))[0] == 403
        assert (await ask(daemon, "POST", "/v1/drain", OPS))[1]["actor"] == "http operator:eve"
        assert (await ask(daemon, "GET", "/no/such/path"))[0] == 404


async def test_a_key_sees_and_cancels_only_its_own_requests(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path), max_steps=3) as daemon:
        tasks = [
            asyncio.create_task(
                daemon.post(
                    {"prompt": [97], "max_tokens": 50},
                    **{"Authorization": f"Bearer {key}", "X-Request-ID": name},
                )
            )
            for key, name in ((ANN, "ann-1"), (BOB, "bob-1"), (ANN, "same"), (BOB, "same"))
        ]
        await until(lambda: len(daemon.services.table) == 4)

        async def seen(key: str) -> list[tuple[str, str]]:
            listed = (await ask(daemon, "GET", "/v1/requests", key))[1]["data"]
            return sorted((record["id"], record["key"]) for record in listed)

        assert await seen(ANN) == [("ann-1", "ann"), ("same", "ann")]
        assert await seen(BOB) == [("bob-1", "bob"), ("same", "bob")]
        assert len(await seen(OPS)) == 4
        assert (await ask(daemon, "GET", "/v1/requests/bob-1", ANN))[0] == 404
        status, answer, _ = await ask(daemon, "DELETE", "/v1/requests/bob-1", ANN)
        assert (status, answer["result"]) == (404, "not_found")
        assert (await ask(daemon, "DELETE", "/v1/requests/same", BOB))[1]["result"] == "cancelled"
        assert (await tasks[3])[1]["error"][
            "message"
        ] == "Another call with the same key cancelled the request."
        assert not tasks[2].done(), "of the same name, but another key's"
        for name in ("bob-1", "same", "ann-1"):
            assert (await ask(daemon, "DELETE", f"/v1/requests/{name}", OPS))[1]["result"] == "cancelled"
        assert [task[0] for task in await asyncio.gather(*tasks)] == [499] * 4
        everything = json.dumps((await ask(daemon, "GET", "/v1/requests", OPS))[1])
        assert "prompt_tokens" in everything
        assert '"text"' not in everything


async def test_tenants_share_no_prefix_and_see_none_of_each_others_hits(tmp_path: Path) -> None:
    async with running(
        tmp_path, settings=key_settings(tmp_path), fake=EngineSettings(device="fake")
    ) as daemon:
        prompt = list(range(5, 165))

        async def hit(key: str, **more: Any) -> int:
            usage = (await complete(daemon, key, prompt=prompt, max_tokens=1, **more))["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert await hit(ANN, cache_salt="s") == 0
        assert await hit(ANN, cache_salt="s") == 144
        assert await hit(BOB, cache_salt="s") == 0, "the salt of another key is another salt"
        assert await hit(BOB) == 0
        for guess in ("ann", "ann\0s", "\0ann\0s", "bytes\0ann\0s"):
            assert await hit(BOB, cache_salt=guess) == 0
        listed = (await ask(daemon, "GET", "/v1/requests", BOB))[1]["data"]
        assert sum(record["cached_tokens"] for record in listed) == 0
        assert (await ask(daemon, "GET", "/metrics", BOB))[0] == 403
        assert "prefix_cache_hits_total" in (await ask(daemon, "GET", "/metrics", OPS))[1]


async def test_guests_of_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest is known by the kernel; here the kernel is told what to say."""
    group = 4321
    async with running(tmp_path, max_steps=3) as daemon:
        daemon.services.door.guests_gid = group
        own = await AsyncClient.connect(daemon.socket_path)
        stream = own.generate([97], max_tokens=50, request_id="mine")
        await anext(stream)
        monkeypatch.setattr(unix_socket, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({group})))
        async with await AsyncClient.connect(daemon.socket_path) as guest:
            other = guest.generate([98], max_tokens=50, request_id="guests")
            await anext(other)
            assert [record["id"] for record in await guest.requests()] == ["guests"]
            assert await guest.cancel_request("mine") == "not_found"
            for forbidden in (
                guest.status(),
                guest.drain(),
                guest.shutdown(),
                guest.set_partition(mode="auto"),
            ):
                with pytest.raises(SemipdError) as refused:
                    await forbidden
                assert refused.value.code == "operator_required"
            with pytest.raises(SemipdError) as refused:
                await anext(guest.subscribe())
            assert refused.value.code == "operator_required"
            assert [record["key"] for record in await own.requests()] == [f"uid:{os.getuid() + 5}", None]
            assert await own.cancel_request("guests") == "cancelled"
        seen = await daemon.engine()
        assert len({submitted["namespace"] for submitted in seen["submitted"]}) == 2
        monkeypatch.setattr(
            unix_socket, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({group + 1}))
        )
        with pytest.raises(SemipdError) as refused:
            await AsyncClient.connect(daemon.socket_path)
        assert refused.value.code == "peer_not_allowed"
        await own.close()


def test_the_kernel_knows_the_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert peer.groups == {os.getgid(), *os.getgroups()}


def test_a_socket_for_a_group(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    with claim_socket(folder / "s", group=os.getgid()):
        found = (folder / "s").stat()
        assert (found.st_mode & 0o777, found.st_gid) == (0o660, os.getgid())
    folder.chmod(0o700)
    with pytest.raises(SemipdError) as refused, claim_socket(folder / "s", group=os.getgid()):
        pass
    assert refused.value.code == "socket_out_of_reach"
    with pytest.raises(SemipdError) as refused:
        group_id("no-such-group-here")
    assert refused.value.code == "unknown_group"


def test_an_open_address_needs_keys() -> None:
    with pytest.raises(SemipdError) as refused:
        claim_http("0.0.0.0", 0)
    assert refused.value.code == "key_required"
    for listener in claim_http("0.0.0.0", 0, needs_key=True):
        listener.close()


def test_a_daemon_with_keys_reads_them_again_on_sighup(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys", f"ann:{ANN}\n")
    with scripted_process(tmp_path, settings={"auth.keys_file": file, "server.host": "0.0.0.0"}) as daemon:
        write_keys(tmp_path / "keys", f"bob:{BOB}\n")
        daemon.process.send_signal(signal.SIGHUP)
        log = tmp_path / "stderr"
        asyncio.run(until(lambda: "key files reloaded: 1 API keys" in log.read_text()))
    assert ANN not in log.read_text() + BOB


# ---- hosts, sizes, times -----------------------------------------------------------------------------


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
        status, answer, _ = await ask(daemon, "DELETE", "/v1/drain", Host=host)
        assert status == (200 if is_allowed else 403)
        if not is_allowed:
            assert "server.allowed_hosts" in answer["error"]["message"]


async def test_no_cors(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        status, _, headers = await ask(daemon, "OPTIONS", "/v1/completions", Origin="http://evil.example")
        assert status == 405
        _, _, more = await ask(daemon, "GET", "/v1/models", Origin="http://evil.example")
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
        assert (await ask(daemon, "GET", "/health"))[0] == 200
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
        assert (await ask(daemon, "GET", "/health"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_packed_bodies_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        packed = gzip.compress(b'{"prompt": "' + b"a" * 50_000_000 + b'"}')
        status, answer, _ = await daemon.post(packed, **{"Content-Encoding": "gzip"})
        assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
        assert (await ask(daemon, "GET", "/health", **{"Content-Encoding": "gzip"}))[0] == 200
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
        answers = [await ask(daemon, "GET", "/v1/models", ANN) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        assert answers[2][1]["error"]["code"] == "rate_limited"
        assert 90 <= int(answers[2][2]["Retry-After"]) <= 100
        assert (await ask(daemon, "GET", "/v1/models", BOB))[0] == 200
        assert [(await ask(daemon, "GET", "/v1/status", OPS))[0] for _ in range(5)] == [200] * 5
        guesses = [(await ask(daemon, "GET", "/v1/models", "wrong-key-0123456789"))[0] for _ in range(3)]
        assert guesses == [401, 401, 429]
        assert [(await ask(daemon, "GET", "/health"))[0] for _ in range(5)] == [200] * 5
    async with running(tmp_path, settings=slow) as daemon:
        assert [(await ask(daemon, "GET", "/v1/models"))[0] for _ in range(3)] == [200, 200, 429]


# ---- logs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_no_secret_and_no_prompt_in_the_log_unless_asked(
    tmp_path: Path, log_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = key_settings(tmp_path) | {"server.log_prompts": log_prompts}
    async with running(tmp_path, settings=settings) as daemon:
        await complete(daemon, ANN, prompt="the secret of the sphinx\nforged line", max_tokens=2)
        await daemon.post({"prompt": "x", "stop": [1], "zzz": "riddle"}, Authorization=f"Bearer {ANN}")
        await ask(daemon, "GET", "/v1/models", "wrong-key-0123456789")
        async with await AsyncClient.connect(daemon.socket_path) as client:
            async for _item in client.generate("another sphinx", max_tokens=1):
                pass
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    for secret in (ANN, BOB, OPS, "wrong-key", "riddle"):
        assert secret not in logged
    assert ("sphinx" in logged) == log_prompts
    if log_prompts:
        shown = [vars(record)["prompt"] for record in caplog.records if "prompt" in vars(record)]
        assert shown == ["'the secret of the sphinx\\nforged line'", "'another sphinx'"]
