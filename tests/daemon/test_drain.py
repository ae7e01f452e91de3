"""Draining: new work is refused, what runs finishes or is handed back, and it can be taken back."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until
from support.daemon_process import DaemonProcess, scripted_process
from support.known import known

from semipd.client import AsyncClient
from semipd.core.errors import SemipdError

JSON = {"Content-Type": "application/json"}


async def call(daemon: Running, method: str, **body: Any) -> dict[str, Any]:
    sent: dict[str, Any] = {"data": json.dumps(body), "headers": JSON} if method != "GET" else {}
    async with daemon.http.request(method, f"{daemon.url}/v1/drain", **sent) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def ready(daemon: Running) -> tuple[int, dict[str, Any], str | None]:
    async with daemon.http.get(f"{daemon.url}/ready") as response:
        return response.status, await response.json(), response.headers.get("Retry-After")


async def test_a_drain_refuses_new_work_and_lets_the_old_finish(tmp_path: Path) -> None:
    async with running(tmp_path, step_ms=5) as daemon:
        running_one = asyncio.create_task(daemon.complete(prompt=[97], max_tokens=60, n=2))
        await until(lambda: len(daemon.services.table) > 0)
        answer = await call(daemon, "POST", limit_s=60, reason="new weights")
        assert (answer["state"], answer["reason"]) == ("draining", "new weights")
        assert answer["awaited"] >= 1
        assert 55 < answer["seconds_left"] <= 60
        status, told, response = await daemon.post({"prompt": "a"})
        assert (status, told["error"]["code"]) == (503, "draining")
        assert 50 <= int(response.headers["Retry-After"]) <= 60
        status, told, retry = await ready(daemon)
        assert (status, told["error"]["code"]) == (503, "draining")
        assert retry is not None
        assert "requests run, the oldest for" in told["error"]["message"]
        frame = await daemon.services.state(max_age_s=0)
        assert frame["drain"]["actor"] == answer["actor"] == "http 127.0.0.1"
        assert known(frame["drain"]["oldest_ms"]) > 0
        done = await running_one
        assert done["usage"]["completion_tokens"] == 120, "the second choice came after the drain began"
        await until(lambda: daemon.services.drain.state == "drained")
        shown = await call(daemon, "GET")
        assert (shown["state"], shown["awaited"], shown["ended"]) == ("drained", 0, 0)
        status, _, response = await daemon.post({"prompt": "a"})
        assert (status, response.headers["Retry-After"]) == (503, "30")
        assert (await call(daemon, "DELETE"))["state"] == "serving"
        assert (await ready(daemon))[0] == 200
        await daemon.complete(prompt="a", max_tokens=1)
        assert daemon.stop_reasons.empty()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline_hands_back_what_was_generated(tmp_path: Path, stream: bool) -> None:
    async with running(tmp_path, max_steps=3) as daemon:
        body = {"prompt": list(b"abcdef"), "max_tokens": 50, "stream": stream}
        task = asyncio.create_task(daemon.http.post(f"{daemon.url}/v1/completions", json=body))
        await until(lambda: any(live.tokens[2:] for live in daemon.services.table._live.values()))
        await call(daemon, "POST", limit_s=0.2)
        response = await task
        text = await response.text()
        await until(lambda: daemon.services.drain.state == "drained")
        assert (await call(daemon, "GET"))["ended"] == 1
        await daemon.engine_says(lambda seen: seen["live"] == 0)
    assert '"code": "drain_deadline"' in text
    assert "after 3 tokens" in text
    if stream:
        assert response.status == 200
        events = [json.loads(event[6:]) for event in text.split("\n\n") if event]
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "abc"
    else:
        assert response.status == 503
        assert json.loads(text)["partial"]["choices"] == [
            {"index": 0, "text": "abc", "token_ids": [97, 98, 99]}
        ]


async def test_drain_over_the_socket(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        answer = await client.drain(limit_s=5, actor="deploy", reason="reboot")
        assert (answer["actor"], answer["reason"]) == ("deploy", "reboot")
        with pytest.raises(SemipdError) as refused:
            await anext(client.generate("a"))
        assert refused.value.code == "draining"
        assert refused.value.retry_after_s is not None
        assert (await client.status())["drain"]["state"] in ("draining", "drained")
        assert (await client.drain(cancel=True))["state"] == "serving"
        assert (await client.drain(cancel=True))["state"] == "serving"
        async for _item in client.generate("a", max_tokens=1):
            pass


async def test_stopping_drains_first_and_cannot_be_taken_back(tmp_path: Path) -> None:
    async with (
        running(tmp_path, step_ms=5) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        stream = client.generate([97], max_tokens=100)
        first = await anext(stream)
        answer = await client.shutdown(limit_s=60)
        assert (answer["state"], answer["awaited"]) == ("stopping", 1)
        with pytest.raises(SemipdError) as refused:
            await client.drain(cancel=True)
        assert refused.value.code == "shutting_down"
        assert daemon.stop_reasons.empty()
        assert len(first.token_ids) + sum([len(item.token_ids) async for item in stream]) == 100
        async with asyncio.timeout(20):
            await daemon.stop_reasons.get()


async def test_a_second_call_sets_another_deadline(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_steps=2) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        stream = client.generate([97], max_tokens=100)
        await anext(stream)
        await client.drain(limit_s=80_000)
        answer = await client.shutdown(limit_s=0)
        assert answer["seconds_left"] == 0
        with pytest.raises(SemipdError) as ended:
            [item async for item in stream]
        assert ended.value.code == "drain_deadline"
        async with asyncio.timeout(20):
            await daemon.stop_reasons.get()


async def test_a_drain_that_is_taken_back_ends_nobody(tmp_path: Path) -> None:
    async with (
        running(tmp_path, step_ms=5) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        stream = client.generate([97], max_tokens=150)
        await anext(stream)
        await client.drain(limit_s=0.3)
        await client.drain(cancel=True)
        assert sum([len(item.token_ids) async for item in stream]) == 149


def told(daemon: Running) -> list[Mapping[str, Any]]:
    """What the journal says of the drain."""
    entries = daemon.services.history.journal.read(0, 4096).entries
    return [entry.data for entry in entries if entry.kind == "drain_changed"]


async def test_every_change_of_the_drain_is_an_event(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_steps=2) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        stream = client.generate([97], max_tokens=100)
        await anext(stream)
        await client.drain(limit_s=80_000, actor="ann", reason="new weights")
        await client.drain(limit_s=70_000, actor="bob")
        await client.drain(cancel=True, actor="cat", reason="not today")
        await client.drain(cancel=True)
        assert daemon.services.drain.state == "serving"
        await client.drain(limit_s=0, actor="dan")
        with pytest.raises(SemipdError):
            [item async for item in stream]
        await until(lambda: daemon.services.drain.state == "drained")
        await client.shutdown(limit_s=5, actor="eve")
        await daemon.stop_reasons.get()
        changes = told(daemon)
    assert [(change["state"], change["actor"], change["limit_s"]) for change in changes] == [
        ("draining", "ann", 80_000),
        ("draining", "bob", 70_000),
        ("serving", "cat", 70_000),
        ("draining", "dan", 0),
        ("drained", "dan", 0),
        ("stopping", "eve", 5),
        ("drained", "eve", 5),
    ]
    assert [change["reason"] for change in changes[:3]] == ["new weights", "", "not today"]
    assert [change["awaited"] for change in changes[:4]] == [1, 1, 1, 1]
    assert changes[4]["ended"] == 1


@pytest.mark.parametrize(
    "body", [{"limit_s": -1}, {"limit_s": 1e9}, {"limit_s": "soon"}, {"zzz": 1}, {"reason": "x" * 300}]
)
async def test_bad_wishes(tmp_path: Path, body: dict[str, Any]) -> None:
    async with running(tmp_path) as daemon:
        status, answer, _ = await daemon.post(body, "/v1/drain")
        assert status == 400, answer
        assert daemon.services.drain.state == "serving"


# ---- the whole daemon ----------------------------------------------------------------------------------


async def generate(daemon: DaemonProcess, num_tokens: int, started: asyncio.Event) -> tuple[int, str]:
    """How many tokens came, and how it ended. It has `started` when there are three."""
    num = 0
    async with await AsyncClient.connect(daemon.socket_path) as client:
        try:
            async for item in client.generate([40], max_tokens=num_tokens):
                num += len(item.token_ids)
                if num >= 3:
                    started.set()
        except SemipdError as error:
            return num, error.code
    return num, "finished"


def ended(daemon: DaemonProcess, tmp_path: Path) -> tuple[int, str]:
    return daemon.process.wait(40), (tmp_path / "stderr").read_text()


async def test_sigterm_lets_a_stream_finish(tmp_path: Path) -> None:
    with scripted_process(tmp_path, step_ms=5) as daemon:
        started = asyncio.Event()
        task = asyncio.create_task(generate(daemon, 200, started))
        await started.wait()
        daemon.process.send_signal(signal.SIGTERM)
        assert await task == (200, "finished")
        code, log = await asyncio.to_thread(ended, daemon, tmp_path)
    assert code == 0, log
    assert "stopping, asked by SIGTERM: 1 requests run" in log
    assert "0 requests had to be ended" in log


async def test_stop_with_a_deadline_says_what_it_awaits_and_ends_the_rest(tmp_path: Path) -> None:
    with scripted_process(tmp_path, max_steps=3) as daemon:
        started = asyncio.Event()
        task = asyncio.create_task(generate(daemon, 200, started))
        await started.wait()
        stopped = await asyncio.to_thread(daemon.command, "stop", "--within", "1s", "--reason", "test")
        assert await task == (3, "drain_deadline")
        code, log = await asyncio.to_thread(ended, daemon, tmp_path)
    assert (code, stopped.returncode) == (0, 0), (log, stopped)
    assert "1 requests under way" in stopped.stderr
    assert "has stopped" in stopped.stdout
    assert "1 requests had to be ended" in log


async def test_a_second_signal_forces(tmp_path: Path) -> None:
    with scripted_process(tmp_path, max_steps=3) as daemon:
        started = asyncio.Event()
        task = asyncio.create_task(generate(daemon, 200, started))
        await started.wait()
        daemon.process.send_signal(signal.SIGTERM)
        await until(lambda: "stopping, asked by" in (tmp_path / "stderr").read_text())
        assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGTERM)
        code, log = await asyncio.to_thread(ended, daemon, tmp_path)
        assert (await task)[0] == 3
    assert code == 130, log


async def test_the_drain_command(tmp_path: Path) -> None:
    with scripted_process(tmp_path, step_ms=5) as daemon:
        started = asyncio.Event()
        task = asyncio.create_task(generate(daemon, 100, started))
        await started.wait()
        drained = await asyncio.to_thread(daemon.command, "drain", "--within", "50s", "--wait", "--json")
        assert await task == (100, "finished")
        status = await asyncio.to_thread(daemon.command, "status")
        undone = await asyncio.to_thread(daemon.command, "drain", "--undo")
        assert await generate(daemon, 2, started) == (2, "finished")
    assert json.loads(drained.stdout)["state"] == "drained", drained
    assert "drained for" in status.stdout
    assert undone.stdout == "serving\n", undone


async def test_stop_now(tmp_path: Path) -> None:
    with scripted_process(tmp_path, max_steps=3) as daemon:
        started = asyncio.Event()
        task = asyncio.create_task(generate(daemon, 200, started))
        await started.wait()
        stopped = await asyncio.to_thread(daemon.command, "stop", "--now")
        assert await task == (3, "drain_deadline")
        assert (stopped.returncode, await asyncio.to_thread(daemon.process.wait, 40)) == (0, 0)


def test_stop_finds_a_daemon_whose_socket_is_gone(tmp_path: Path) -> None:
    pid_file = tmp_path / "d.pid"
    with scripted_process(tmp_path) as daemon:
        missing = daemon.command("stop", "--socket", str(tmp_path / "other.sock"))
        pid_file.write_text(f"{os.getpid()}\n")
        stale = daemon.command("stop", "--socket", str(tmp_path / "other.sock"), "--pid-file", str(pid_file))
    assert (missing.returncode, stale.returncode) == (3, 3)
    assert f"{pid_file} is stale" in stale.stderr
    assert os.getpid(), "whoever has the number was left alone"
