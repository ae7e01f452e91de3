"""The daemon as a process: start, announce, serve, stop; nothing stays behind."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import tiny_tokenizers
from support.eventually import eventually_now

from semipd.client import AsyncClient

SUPPORT = Path(__file__).parents[1] / "support"
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
LIMIT_S = 240


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_tokenizers.byte_level().save(str(folder / "tokenizer.json"))
    config = {"vocab_size": 400, "max_position_embeddings": 512, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass
class DaemonProcess:
    process: subprocess.Popen[str]
    socket_path: Path
    announced: str = ""

    @property
    def url(self) -> str:
        found = re.search(r"http://\S+", self.announced)
        assert found is not None, self.announced
        return found[0]

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        while "try:" not in self.announced:
            line = self.process.stdout.readline()
            assert line, f"the daemon ended: {self.ended()}"
            self.announced += line

    def ended(self) -> tuple[int, str]:
        """Exit code and the rest of what it said. Nothing of it may be left."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        assert not self.socket_path.exists()
        assert children_of(self.process.pid) == []
        return self.process.returncode, self.announced + out + err

    def post(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return json.load(response)


def children_of(parent: int) -> list[int]:
    """Processes whose session or parent was `parent` and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if parent in (int(fields[1]), int(fields[3])) and int(entry.name) != parent and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@contextmanager
def started(tmp_path: Path, *command: str) -> Iterator[DaemonProcess]:
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        start_new_session=True,
    )
    daemon = DaemonProcess(process, tmp_path / "d.sock")
    try:
        yield daemon
    finally:
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def cli(model: Path, *more: str, port: str = "0", socket: Path | None = None) -> list[str]:
    flags = ["--device", "fake", "--model", str(model), "--port", port]
    flags += ["--socket", str(socket or model.parent / "d.sock")]
    return ["-m", "semipd.commands.daemon", "start", *flags, *more]


def run_to_the_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=LIMIT_S, env=ENV
    )


def scripted(model: Path, **script: Any) -> list[str]:
    socket_path = str(model.parent / "d.sock")
    return [str(SUPPORT / "scripted_daemon.py"), str(model), socket_path, json.dumps(script)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_the_fake_device_and_stops_cleanly(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    with started(tmp_path, *cli(model)) as daemon:
        daemon.wait_until_ready()
        answer = daemon.post({"prompt": "The quick brown", "max_tokens": 5, "seed": 1, "ignore_eos": True})
        assert answer["usage"]["completion_tokens"] == 5
        assert children_of(daemon.process.pid)
        daemon.process.send_signal(number)
        code, said = daemon.ended()
    assert code == 0, said
    assert "curl -N" in daemon.announced
    assert "Traceback" not in said


def test_the_printed_curl_line_streams(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *cli(model)) as daemon:
        daemon.wait_until_ready()
        line = daemon.announced.partition("try: ")[2]
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.stdout.startswith("data: {"), done
        assert done.stdout.rstrip().endswith("data: [DONE]")


def test_shutdown_over_the_socket_ends_streams_with_a_reason(tmp_path: Path, model: Path) -> None:
    async def talk(daemon: DaemonProcess) -> str:
        async with await AsyncClient.connect(daemon.socket_path) as client:
            stream = client.generate([40], max_tokens=400)
            await anext(stream)
            await client.shutdown(limit_s=0)
            try:
                async for _item in stream:
                    pass
            except Exception as error:
                return str(getattr(error, "code", error))
            return "nothing"

    with started(tmp_path, *scripted(model, max_steps=3)) as daemon:
        daemon.wait_until_ready()
        assert asyncio.run(talk(daemon)) == "drain_deadline"
        code, said = daemon.ended()
    assert code == 0, said


def test_a_second_signal_stops_at_once(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *scripted(model, stubborn=True)) as daemon:
        daemon.wait_until_ready()
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.stderr is not None
        while "stopping" not in daemon.process.stderr.readline():
            pass
        daemon.process.send_signal(signal.SIGINT)
        code, said = daemon.ended()
    assert code == 130, said
    assert "the engine did not stop within" not in said


def test_ctrl_c_while_the_engine_starts(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *scripted(model, phases=[["loading weights", 60, 60]])) as daemon:
        while not daemon.socket_path.exists() or not children_of(daemon.process.pid):
            time.sleep(0.02)
        daemon.process.send_signal(signal.SIGINT)
        code, said = daemon.ended()
    assert code == 0, said


def test_an_engine_that_fails_to_start(tmp_path: Path, model: Path) -> None:
    fail = {"code": "kv_too_small", "message": "KV needs 18 GiB.", "hint": "Lower kv.fraction."}
    with started(tmp_path, *scripted(model, fail=fail)) as daemon:
        code, said = daemon.ended()
    assert code == 1
    assert "KV needs 18 GiB. Lower kv.fraction." in said


def test_a_killed_daemon_takes_its_engine_along_and_can_start_again(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *cli(model)) as daemon:
        daemon.wait_until_ready()
        daemon.process.kill()
        daemon.process.communicate(timeout=LIMIT_S)
        eventually_now(lambda: children_of(daemon.process.pid) == [], "no children")
        assert daemon.socket_path.exists()
    with started(tmp_path, *cli(model)) as daemon:
        daemon.wait_until_ready()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended()[0] == 0


def test_addresses_in_use(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *cli(model)) as daemon:
        daemon.wait_until_ready()
        port = daemon.url.rpartition(":")[2]
        same_port = run_to_the_end(cli(model, port=port, socket=tmp_path / "other.sock"))
        same_socket = run_to_the_end(cli(model))
        assert daemon.post({"prompt": "a", "max_tokens": 1})["choices"]
    assert (same_port.returncode, same_socket.returncode) == (1, 1)
    assert f"Port {port}" in same_port.stderr
    assert f"pid {daemon.process.pid}" in same_socket.stderr


def test_an_open_address_is_refused(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *cli(model, "--host", "0.0.0.0")) as daemon:
        code, said = daemon.ended()
    assert code == 1
    assert "key_required" in said


def test_client_command_line(tmp_path: Path, model: Path) -> None:
    with started(tmp_path, *scripted(model)) as daemon:
        daemon.wait_until_ready()

        def client(*arguments: str) -> subprocess.CompletedProcess[str]:
            return run_to_the_end(
                ["-m", "semipd.commands.client", *arguments, "--socket", str(daemon.socket_path)]
            )

        text = client("generate", "The quick brown fox", "--max-tokens", "12")
        items = client("generate", "The quick", "--max-tokens", "3", "--json")
        status = client("status")
        refused = client("generate", "a", "--max-tokens", "0")
    assert "The quick brown fox" in text.stdout, text
    assert sum(len(json.loads(line)["token_ids"]) for line in items.stdout.splitlines()) == 3
    assert "daemon       version" in status.stdout
    assert refused.returncode == 1
    assert "max_tokens=0 asks for nothing but the prompt" in refused.stderr
