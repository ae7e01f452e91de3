"""start --detach, pid files and logs, in real processes on the fake device."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_process import ENV, LIMIT_S, model_folder
from support.patience import Patience

from semipd.client import Client
from semipd.core.errors import SemipdError
from semipd.daemon.host.detach import claim_pid_file


def cli(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "semipd.commands.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=ENV)


class Place:
    """Where one daemon lives."""

    def __init__(self, folder: Path) -> None:
        self.model = model_folder(folder / "model")
        self.socket = folder / "run" / "daemon.sock"
        self.pid_file = self.socket.with_suffix(".pid")
        self.log_file = self.socket.with_suffix(".log")

    def start(self, *more: str, device: str = "fake") -> "subprocess.CompletedProcess[str]":
        model = ["--model", str(self.model), "--device", device, "--port", "0"]
        return cli("start", "--detach", *model, "--socket", str(self.socket), *more)

    def stop(self) -> "subprocess.CompletedProcess[str]":
        return cli("stop", "--socket", str(self.socket))

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    if place.pid_file.exists():
        wait_until_gone(place.pid, signal.SIGKILL)


def wait_until_gone(pid: int, number: signal.Signals) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(process, number)
    patience = Patience(LIMIT_S)
    while Path(f"/proc/{pid}").exists() and not patience.is_over():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.01)
    os.close(process)


def test_it_is_ready_when_the_command_returns(place: Place) -> None:
    started = place.start()
    assert started.returncode == 0, started.stderr
    assert "try: curl" in started.stdout
    assert f"pid {place.pid} " in started.stdout
    assert str(place.log_file) in started.stdout
    with Client.connect(place.socket) as client:
        assert len(list(client.generate("a", max_tokens=2, ignore_eos=True))[-1].token_ids) >= 1
    assert os.getsid(place.pid) == place.pid, "of its own session: no terminal takes it along"
    pid = place.pid
    stopped = place.stop()
    assert stopped.returncode == 0, stopped.stderr
    assert f"pid {pid}" in stopped.stdout
    assert not place.pid_file.exists()
    assert "starting the engine process" in place.log_file.read_text()


def test_failures_are_told_with_their_exit_code(place: Place, tmp_path: Path) -> None:
    no_model = cli("start", "--detach", "--model", str(tmp_path / "none"), "--socket", str(place.socket))
    wrong = place.start("--set", "engine.max_num_seqs=0")
    no_log = place.start("--log-file", str(place.model / "config.json" / "x"))
    assert (no_model.returncode, wrong.returncode, no_log.returncode) == (1, 2, 1)
    assert "model_not_found" in no_model.stderr
    assert "model_not_found" in place.log_file.read_text()
    assert "invalid_config" in wrong.stderr
    assert "log_file_unusable" in no_log.stderr
    assert not place.pid_file.exists()
    assert "Traceback" not in no_model.stderr + wrong.stderr + no_log.stderr


def test_an_engine_that_fails_is_told(place: Place) -> None:
    failed = place.start(device="cpu")  # which needs weights, and there are none
    assert failed.returncode == 1
    assert failed.stderr.startswith("error [")
    assert not place.pid_file.exists()


def test_a_running_one_is_not_disturbed(place: Place) -> None:
    assert place.start().returncode == 0
    pid = place.pid
    again = place.start()
    assert again.returncode == 1
    assert "already_running" in again.stderr
    assert f"pid {pid}" in again.stderr
    assert place.pid == pid
    assert cli("status", "--socket", str(place.socket)).returncode == 0


def test_a_stale_pid_file_is_recognised(place: Place) -> None:
    place.socket.parent.mkdir()
    place.pid_file.write_text(f"{os.getpid()}\n")  # a number that lives, but is no daemon
    assert place.start("--log-format", "json").returncode == 0
    assert place.pid != os.getpid()
    killed = place.pid
    wait_until_gone(killed, signal.SIGKILL)
    assert place.pid == killed, "left behind"
    assert place.start("--log-format", "json").returncode == 0
    lines = [json.loads(line) for line in place.log_file.read_text().splitlines()]
    assert sum(f"pid {killed}, left its pid file" in line["message"] for line in lines) == 1
    assert place.stop().returncode == 0


def test_files_of_ones_own_choice(place: Place, tmp_path: Path) -> None:
    pid_file, log_file = tmp_path / "my.pid", tmp_path / "my.log"
    started = place.start("--pid-file", str(pid_file), "--log-file", str(log_file))
    assert started.returncode == 0, started.stderr
    assert log_file.stat().st_mode & 0o077 == 0
    assert not place.pid_file.exists()
    assert place.stop().returncode == 0
    assert not pid_file.exists()


def test_a_start_that_dies_without_a_word(place: Place) -> None:
    """Whoever waits learns it from the end of the pipe, and reads the log."""
    environment = ENV | {"PYTHONPATH": str(place.model)}
    (place.model / "sitecustomize.py").write_text(
        "import sys, os\n"
        "if '--report-fd' in sys.argv:\n"
        "    print('no air', file=sys.stderr, flush=True)\n"
        "    os._exit(9)\n"
        f"sys.path.insert(0, {ENV['PYTHONPATH']!r})\n"
    )
    command = [sys.executable, "-m", "semipd.commands.daemon", "start", "--detach", "--device", "fake"]
    command += ["--model", str(place.model), "--socket", str(place.socket)]
    failed = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, cwd=ENV["PYTHONPATH"]
    )
    assert failed.returncode == 1
    assert "code 9" in failed.stderr
    assert "no air" in failed.stderr


@pytest.mark.parametrize("flag", ["--pid-file", "--log-file"])
def test_flags_of_a_detached_daemon_need_it(flag: str) -> None:
    refused = cli("start", flag, "x")
    assert refused.returncode == 2
    assert "conflicting_options" in refused.stderr


def test_pid_file_claims(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with claim_pid_file(path) as stale:
        assert stale is None
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(SemipdError) as refused, claim_pid_file(path):
            pass
        assert refused.value.code == "already_running"
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's", "not ours to remove"
    with claim_pid_file(path) as stale:
        assert stale is None, "no number in it"
    assert not path.exists()
    (tmp_path / "link.pid").symlink_to(tmp_path / "victim")
    for unusable in (tmp_path / "link.pid", tmp_path):
        with pytest.raises(SemipdError) as refused, claim_pid_file(unusable):
            pass
        assert refused.value.code == "pid_file_unusable"
    assert not (tmp_path / "victim").exists()


def test_what_is_no_pid_file_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    """As root, /dev/null would have gone."""
    fifo, text = tmp_path / "fifo", tmp_path / "my.toml"
    os.mkfifo(fifo)
    content = "# of somebody\n[server]\nport = 8808\n"
    text.write_text(content)
    for path in (fifo, text, tmp_path):
        with pytest.raises(SemipdError) as refused, claim_pid_file(path):
            pass
        assert refused.value.code == "pid_file_unusable"
        assert path.exists()
    assert text.read_text() == content
    failed = cli("start", "--detach", "--device", "fake", "--pid-file", str(text), "--port", "0")
    assert failed.returncode == 1
    assert "no pid file" in failed.stderr
    assert text.read_text() == content
