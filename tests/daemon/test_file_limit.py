"""A daemon that may open few files, or start few processes: it says so, and serves on."""

import asyncio
import errno
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.daemon import running, until
from support.daemon_process import LIMIT_S, fake_process
from support.scripted_engine import scripted

from semipd.client import Client
from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.engine import supervisor
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.prompts import rendering
from semipd.daemon.prompts.conversation import Conversation
from semipd.daemon.prompts.rendering import RenderPool
from semipd.engine.launcher import EngineChild

FILES = 64


def get(peer: socket.socket, path: str) -> tuple[int, bytes]:
    peer.settimeout(LIMIT_S)
    peer.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = peer.recv(100_000)
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split()[1]), answer


_CHAT_BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    + f"Content-Length: {len(_CHAT_BODY)}\r\n\r\n".encode()
    + _CHAT_BODY
)


def engine_of(pid: int) -> int:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"semipd.engine" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("there is no engine")


def test_few_files(tmp_path: Path) -> None:
    """Everybody is answered, operators are served, and a dead engine is replaced."""
    with fake_process(tmp_path, FILES) as daemon, ExitStack() as stack:
        log = (tmp_path / "stderr").read_text()
        told = re.search(rf"at most (\d+) connections may be open.* `ulimit -n` {FILES}", log)
        assert told is not None
        most = int(told[1])
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port))) for _ in range(FILES)
        ]
        answers = [get(peer, "/v1/models") for peer in peers]
        assert Counter(status for status, _ in answers) == {200: most, 503: FILES - most}
        refused = next(answer for status, answer in answers if status == 503)
        served = next(peer for peer, (status, _) in zip(peers, answers, strict=True) if status == 200)
        assert b"too_many_connections" in refused
        assert f"{most} connections, all that `ulimit -n` {FILES} leaves".encode() in refused
        operator = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        assert get(operator, "/health")[0] == 200
        clients = fill_socket(daemon.socket_path, most, stack)
        os.kill(engine_of(daemon.process.pid), signal.SIGKILL)
        assert [*clients[0].generate("a", max_tokens=2, ignore_eos=True)]
        served.sendall(CHAT)
        assert served.recv(100_000).startswith(b"HTTP/1.1 200 OK")
    log = (tmp_path / "stderr").read_text()
    assert "Errno" not in log
    assert "Traceback" not in log


def fill_socket(path: Path, most: int, stack: ExitStack) -> list[Client]:
    """So many clients; one more is told why it has no place."""
    clients = [stack.enter_context(Client.connect(path)) for _ in range(most)]
    for _ in range(FILES):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(LIMIT_S)
            peer.connect(str(path))
            assert b"too_many_connections" in peer.recv(65536)
    return clients


def spawning(failures: list[int]) -> Callable[[], EngineChild]:
    """The first start succeeds; the next ones fail with these errors, and then starts succeed."""
    spawn = scripted()
    starts = iter([0, *failures])

    def start() -> EngineChild:
        if number := next(starts, 0):
            raise OSError(number, os.strerror(number))
        return spawn()

    return start


@pytest.mark.parametrize(("number", "limit"), [(errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "ulimit -u")])
async def test_no_room_for_an_engine_is_no_death(
    tmp_path: Path, number: int, limit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that wait for a request give their files back; the start is tried again."""
    monkeypatch.setattr(supervisor, "MIN_RETRY_S", 0.01)
    settings = {"supervision.max_deaths": 2}
    async with running(tmp_path, spawn=spawning([number] * 5), settings=settings) as daemon:
        assert (await daemon.ask("GET", "/health"))[0] == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", int(daemon.url.rpartition(":")[2]))
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        daemon.services.supervisor.kill()
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: daemon.services.supervisor.num_restarts == 1, LIMIT_S)
        assert (await daemon.ask("GET", "/ready"))[0] == 200
    assert sum(limit in line for line in caplog.messages) == 5


async def test_that_is_tried_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "EXHAUSTED_LIMIT_S", 0.0)
    settings = {"supervision.max_deaths": 3}
    async with running(tmp_path, spawn=spawning([errno.EMFILE] * 9), settings=settings) as daemon:
        daemon.services.supervisor.kill()
        error = await daemon.services.supervisor.failed()
    assert error.code == "engine_failed"
    assert "ulimit -n" in error.hint


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
async def test_no_room_for_a_renderer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_link: socket.socket) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rendering, "_spawn", refuse)
    pool = RenderPool(ChatTemplate("x", {}), LimitsConfig())
    with pytest.raises(SemipdError) as refused:
        await pool.render(Conversation([{"role": "user", "content": "Hello"}]))
    await pool.close()
    assert refused.value.code == "overloaded"
    assert refused.value.hint


async def test_no_room_for_a_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(_accept: str) -> None:
        raise RuntimeError("can't start new thread")

    async with running(tmp_path) as daemon:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(daemon.services, "exposition", refuse)
            status, answer, _ = await daemon.ask("GET", "/metrics")
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert "ulimit -u" in answer["error"]["message"]
    assert not any("Traceback" in line for line in caplog.text.splitlines())
