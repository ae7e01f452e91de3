"""semipd-daemon as a person uses it: start, status, stop, on the fake device, in real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny_tokenizers

from semipd.config.config import Config


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "semipd.commands.daemon", *arguments]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=90)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie whose parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Started:
    """A daemon with a model folder without weights, which the fake device does not need."""

    def __init__(self, folder: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
        config = {"vocab_size": 400, "eos_token_id": 1, "max_position_embeddings": 512}
        (folder / "config.json").write_text(json.dumps(config))
        self.socket = folder / "s.sock"
        self.arguments = ["start", "--model", str(folder), "--device", "fake", "--port", "0"]
        self.arguments += ["--socket", str(self.socket), "--set", "model.served_model_name=tiny"]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command(*self.arguments), stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
            )
        assert self.process.stdout is not None
        self.printed = [self.process.stdout.readline() for _ in range(3)]
        assert self.printed[2].startswith("try: curl"), self.log.read_text()
        self.engines = children(self.process.pid)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    started.close()


def test_status_and_stop(daemon: Started) -> None:
    status = run("status", "--json", "--socket", str(daemon.socket))
    assert status.returncode == 0, status.stderr
    document = json.loads(status.stdout)
    assert document["state"] == "ready"
    assert document["model"] == {"name": "tiny", "max_model_len": 512}

    table = run("status", "--socket", str(daemon.socket))
    assert table.returncode == 0, table.stderr
    assert "tiny, context 512 tokens" in table.stdout

    stop = run("stop", "--socket", str(daemon.socket))
    assert stop.returncode == 0, stop.stderr
    assert f"pid {daemon.process.pid}" in stop.stdout
    assert not is_running(daemon.process.pid), "stop returns when the process is gone"
    assert len(daemon.engines) == 1
    assert not any(map(is_running, daemon.engines))
    assert daemon.process.wait(1) == 0
    assert not daemon.socket.exists()
    assert run("stop", "--socket", str(daemon.socket)).returncode == 3


def test_ctrl_c_leaves_nothing(daemon: Started) -> None:
    os.kill(daemon.process.pid, signal.SIGINT)
    assert daemon.process.wait(60) == 0, daemon.log.read_text()
    assert not any(map(is_running, daemon.engines))
    assert not daemon.socket.exists()


def test_two_stops_at_once_both_see_the_end(daemon: Started) -> None:
    arguments = command("stop", "--socket", str(daemon.socket))
    stops = [
        subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    # the slower one may find nothing left to stop
    assert sorted(stop.wait(90) for stop in stops) in ([0, 0], [0, 3])
    assert not is_running(daemon.process.pid)


def test_a_second_daemon_on_the_socket_is_refused(daemon: Started) -> None:
    second = run(*daemon.arguments)
    assert second.returncode == 1
    assert "address_in_use" in second.stderr
    assert str(daemon.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    assert daemon.process.poll() is None
    assert run("status", "--socket", str(daemon.socket)).returncode == 0


def test_an_unknown_model_is_one_message(tmp_path: Path) -> None:
    failed = run("start", "--model", "./no-such-folder", "--port", "0", "--socket", str(tmp_path / "s.sock"))
    assert failed.returncode == 1
    assert "model_not_found" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_default_socket_follows_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert str(Config().socket_path) in run("status").stderr
