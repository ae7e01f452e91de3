"""An answer reaches a client that is still sending, or has sent more than was read."""

import asyncio
import json
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.daemon import Running, running
from support.keys import ANN, key_settings
from support.loops import on_uvloop

from semipd.daemon.host import process_limits
from semipd.daemon.web import lingering
from semipd.wire.frames import FrameReader, encode_frame

LIMIT_S = 60
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"prompt": "a", "max_tokens": 1}).encode()


def port_of(daemon: Running) -> int:
    return int(daemon.url.rpartition(":")[2])


def with_body(body: bytes, head: str = HEAD) -> bytes:
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def tell(address: Any, data: bytes) -> bytes:
    """Send everything, like a client that does not look before it has; then read everything."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as peer:
        peer.settimeout(LIMIT_S)
        peer.connect(address)
        peer.sendall(data)
        return b"".join(iter(lambda: peer.recv(65536), b""))


async def tell_all(address: Any, requests: Sequence[bytes]) -> list[bytes]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(requests)) as pool:
        asked = [loop.run_in_executor(pool, tell, address, request) for request in requests]
        return await asyncio.gather(*asked)


def parsed(answer: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body, which is as long as was promised."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(body) == int(headers["content-length"])
    return int(status.split()[1]), headers, json.loads(body)


@contextmanager
def held(address: Any, number: int) -> Iterator[None]:
    """So many connections, open and silent, on the socket after a hello."""
    with ExitStack() as stack:
        for _ in range(number):
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            peer = stack.enter_context(socket.socket(family))
            peer.connect(address)
            if isinstance(address, str):
                peer.sendall(HELLO)
        yield


@pytest.mark.parametrize("body", [BODY, BODY + b" " * 90_000, BODY + b" " * 3_000_000], ids=len)
@on_uvloop
async def test_a_full_daemon_tells_everybody(tmp_path: Path, body: bytes) -> None:
    number = 100 if len(body) < 10**6 else 20
    async with running(tmp_path, settings={"limits.max_connections": 2}) as daemon:
        address = ("127.0.0.1", port_of(daemon))
        with held(address, 2):
            answers = await tell_all(address, [with_body(body)] * number)
    for status, headers, answer in map(parsed, answers):
        assert (status, answer["error"]["code"]) == (503, "too_many_connections")
        assert int(headers["retry-after"]) >= 1


@on_uvloop
async def test_a_full_daemon_tells_ordinary_clients(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"limits.max_connections": 2}) as daemon:
        with held(("127.0.0.1", port_of(daemon)), 2):
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def ask() -> tuple[int, str]:
                    async with session.post(daemon.url + "/v1/completions", json={"prompt": "a"}) as answer:
                        return answer.status, (await answer.json())["error"]["code"]

                answers = await asyncio.gather(*(ask() for _ in range(100)))
    assert set(answers) == {(503, "too_many_connections")}


@on_uvloop
async def test_a_full_daemon_shows_operators_how_it_is(tmp_path: Path) -> None:
    settings = key_settings(tmp_path) | {"limits.max_connections": 2}
    async with running(tmp_path, settings=settings) as daemon:
        address = ("127.0.0.1", port_of(daemon))
        with held(address, 2):
            for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 401), ("/v1/models", 503)):
                request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                answers = await tell_all(address, [request] * 3)
                assert {parsed(answer)[0] for answer in answers} == {status}, path
        assert len(answers) == 3


@on_uvloop
async def test_reserved_connections_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_limits, "MAX_RESERVED_CONNECTIONS", 0)
    async with running(tmp_path, settings={"limits.max_connections": 1}) as daemon:
        address = ("127.0.0.1", port_of(daemon))
        with held(address, 1):
            [answer] = await tell_all(address, [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
    assert parsed(answer)[0] == 503


MUCH = b"x" * 2_000_000
EARLY = {
    "no key": (with_body(MUCH), 401, "invalid_api_key"),
    "too large": (with_body(MUCH, f"{HEAD}Authorization: Bearer {ANN}\r\n"), 413, "body_too_large"),
    "too large in chunks": (
        f"{HEAD}Authorization: Bearer {ANN}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"1e8480\r\n"
        + MUCH
        + b"\r\n0\r\n\r\n",
        413,
        "body_too_large",
    ),
    "wrong type": (
        with_body(MUCH, f"{HEAD.replace('application/json', 'text/plain')}Authorization: Bearer {ANN}\r\n"),
        415,
        "unsupported_media_type",
    ),
    "wrong host": (
        with_body(MUCH, f"{HEAD.replace('localhost', 'evil.example')}Authorization: Bearer {ANN}\r\n"),
        403,
        "host_not_allowed",
    ),
    "no route": (with_body(MUCH, HEAD.replace("completions", "nothing")), 404, "not_found"),
    "no method": (with_body(MUCH, HEAD.replace("POST", "PUT")), 405, "method_not_allowed"),
    "a body where none is read": (with_body(MUCH, "GET /nothing HTTP/1.1\r\nHost: a\r\n"), 404, "not_found"),
    "an expectation": (
        with_body(MUCH, f"{HEAD}Authorization: Bearer {ANN}\r\nExpect: miracles\r\n"),
        417,
        "expectation_failed",
    ),
    "no HTTP": (b"NONSENSE\r\n\r\n" + MUCH, 400, "malformed_http"),
    "a long header": (b"GET / HTTP/1.1\r\nX: " + MUCH, 431, "headers_too_large"),
}


@on_uvloop
async def test_an_answer_before_the_body(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        for name, (request, status, code) in EARLY.items():
            answers = await tell_all(("127.0.0.1", port_of(daemon)), [request] * 6)
            for answer in answers:
                found, headers, body = parsed(answer)
                assert (found, body["error"]["code"]) == (status, code), name
                is_http_1_0 = answer.startswith(b"HTTP/1.0 ")
                assert is_http_1_0 or headers["connection"] == "close", "what follows is no request"


@on_uvloop
async def test_a_head_that_never_ends(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"limits.head_limit_s": 0.3}) as daemon:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(daemon))
        writer.write(b"GET /health HTTP/1.1\r\nHost: lo")
        await asyncio.sleep(0.5)
        for _ in range(20):  # after the answer, and without a look at it
            writer.write(b"X: " + b"y" * 10_000 + b"\r\n")
            await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            answer = await reader.read()
        writer.close()
    assert parsed(answer)[0] == 408


@on_uvloop
async def test_those_that_linger_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in time; beyond, connections are closed at once, and the daemon serves on."""
    monkeypatch.setattr(process_limits, "MAX_LINGERING", 3)
    monkeypatch.setattr(lingering, "LINGER_S", 0.3)
    closing = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with running(tmp_path) as daemon:
        address = ("127.0.0.1", port_of(daemon))
        with ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection(address)) for _ in range(6)]
            for peer in peers:
                peer.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(peer, closing)
            answers = [await until_end(peer) for peer in peers]
            assert all(parsed(answer)[0] == 200 for answer in answers)
            await until_reset(peers)
        assert (await daemon.ask("GET", "/health"))[0] == 200


async def until_end(peer: socket.socket) -> bytes:
    answer = b""
    async with asyncio.timeout(LIMIT_S):
        while data := await asyncio.get_running_loop().sock_recv(peer, 65536):
            answer += data
    return answer


async def until_reset(peers: Sequence[socket.socket]) -> None:
    """Until the daemon takes nothing more from any of them."""
    async with asyncio.timeout(LIMIT_S):
        for peer in peers:
            with pytest.raises(ConnectionError):
                await send_for_ever(peer)


async def send_for_ever(peer: socket.socket) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(peer, b"x")
        await asyncio.sleep(0.02)


@on_uvloop
async def test_what_is_discarded_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER_BYTES", 1_000_000)
    async with running(tmp_path) as daemon:
        peer = socket.create_connection(("127.0.0.1", port_of(daemon)))
        peer.setblocking(False)
        endless = f"{HEAD}Content-Length: 100000000\r\n\r\n".encode() + b"x" * 100_000_000
        async with asyncio.timeout(LIMIT_S):
            with peer, pytest.raises(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(peer, endless)


def frames(data: bytes) -> list[dict[str, Any]]:
    return [*FrameReader().feed(data)]


HELLO = encode_frame({"op": "hello", "protocol": 1, "agent": "test"})
STATUS = encode_frame({"op": "status", "id": 1})


@on_uvloop
async def test_the_unix_socket_tells_whom_it_turns_away(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"limits.max_connections": 2}) as daemon:
        address = str(daemon.socket_path)
        with held(address, 2):
            answers = await tell_all(address, [HELLO + STATUS * 20_000] * 50)
    for answer in answers:
        assert [frame["error"]["code"] for frame in frames(answer)] == ["too_many_connections"]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [(HELLO + b"\xff\xff\xff\xff", "frame_too_large"), (b"\xc1\x00\x00\x01", "frame_too_large")],
)
@on_uvloop
async def test_the_unix_socket_says_what_is_no_frame(tmp_path: Path, wrong: bytes, code: str) -> None:
    async with running(tmp_path) as daemon:
        answers = await tell_all(str(daemon.socket_path), [wrong + MUCH] * 20)
    for answer in answers:
        assert frames(answer)[-1]["error"]["code"] == code


@on_uvloop
async def test_answers_at_the_end_of_the_daemon(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        address = ("127.0.0.1", port_of(daemon))
        daemon.services.drain.begin("test", "", 60.0)
        asked = asyncio.create_task(tell_all(address, [with_body(MUCH)] * 10))
        answers = await asked
    assert {parsed(answer)[2]["error"]["code"] for answer in answers} == {"draining"}
