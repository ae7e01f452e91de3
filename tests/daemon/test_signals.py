"""Signals: logs are opened again, a closed terminal stops the daemon, and nothing ends it by accident."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.daemon_process import ENV, LIMIT_S, model_folder
from support.eventually import eventually_now
from support.hostile import hostile_folder

from semipd.client import Client
from semipd.core.errors import SemipdError

HARMLESS = (
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPIPE,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)
FOR_CHILDREN = (*HARMLESS, signal.SIGHUP, signal.SIGUSR1)


def cli(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run in `folder`, as the installed script is: nothing there is imported."""
    command = [sys.executable, "-P", "-m", "semipd.commands.daemon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=ENV, cwd=folder)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Daemon:
    def __init__(self, folder: Path, device: str) -> None:
        self.socket, self.log = folder / "d.sock", folder / "logs" / "semipd.log"
        self.arguments = ["start", "--device", device, "--port", "0", "--socket", str(self.socket)]
        model = "demo" if device == "cpu" else str(model_folder(folder / "model"))
        self.arguments += ["--model", model]

    @property
    def pid(self) -> int:
        return int(self.socket.with_suffix(".pid").read_text())

    def serves(self) -> bool:
        try:
            with Client.connect(self.socket) as client:
                return bool([*client.generate("a", max_tokens=2, ignore_eos=True)])
        except SemipdError:  # not yet
            return False


@contextmanager
def detached(tmp_path: Path, device: str = "fake", folder: Path | None = None) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, device)
    started = cli(*daemon.arguments, "--detach", "--log-file", str(daemon.log), folder=folder)
    assert started.returncode == 0, started.stderr
    pid = daemon.pid
    try:
        yield daemon
        assert cli("stop", "--socket", str(daemon.socket)).returncode == 0
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def writes_to(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/2")  # noqa: PTH115 (a link to what may be gone)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_rotated_log(tmp_path: Path, number: signal.Signals) -> None:
    """Renamed, as logrotate does it, and the daemon told: what follows is in the new file, the engine's part
    too, and no line is lost."""
    with detached(tmp_path) as daemon:
        [engine] = children(daemon.pid)
        for turn in range(2):  # as often as one likes
            daemon.log.rename(daemon.log.with_suffix(f".{turn}"))
            os.kill(daemon.pid, number)
            eventually_now(
                lambda: daemon.log.exists() and "opened again" in daemon.log.read_text(), "no new log"
            )
            assert daemon.log.stat().st_mode & 0o777 == 0o600
            eventually_now(lambda: writes_to(engine) == str(daemon.log), "the engine writes elsewhere")
        assert daemon.serves()
        os.kill(engine, signal.SIGKILL)
        eventually_now(lambda: "Starting another one" in daemon.log.read_text(), "no line after the rotation")
        eventually_now(lambda: children(daemon.pid) not in ([], [engine]), "no other engine")
        eventually_now(lambda: writes_to(children(daemon.pid)[0]) == str(daemon.log), "the next engine's log")
        eventually_now(lambda: "ready again" in daemon.log.read_text(), "it is not ready")
    assert "starting the engine process" in daemon.log.with_suffix(".0").read_text()
    assert "stopping" in daemon.log.read_text()


def test_workers_too(tmp_path: Path) -> None:
    """In a hostile folder they run our modules, signals do not end them, and their log is the new one."""
    folder = hostile_folder(tmp_path / "here")
    with detached(tmp_path, "cpu", folder) as daemon:
        [engine] = children(daemon.pid)
        workers = children(engine)
        assert workers
        for number in FOR_CHILDREN:
            for pid in (engine, *workers):
                os.kill(pid, number)
        daemon.log.rename(daemon.log.with_suffix(".0"))
        os.kill(daemon.pid, signal.SIGUSR1)
        eventually_now(lambda: writes_to(engine) == str(daemon.log), "the engine writes elsewhere")
        assert daemon.serves()
        assert (children(daemon.pid), children(engine)) == ([engine], workers)
    assert not (folder / "ran").exists()


def test_a_log_that_cannot_be_opened_again(tmp_path: Path) -> None:
    """Such as a link in its place: the daemon goes on with the file it has, and says so there."""
    with detached(tmp_path) as daemon:
        old = daemon.log.with_suffix(".0")
        daemon.log.rename(old)
        (tmp_path / "victim").write_text("precious")
        daemon.log.symlink_to(tmp_path / "victim")
        os.kill(daemon.pid, signal.SIGUSR1)
        eventually_now(lambda: "not opened again" in old.read_text(), "no word of it")
        assert "symbolic link" in old.read_text()
        assert daemon.serves()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_planted_log_file_is_refused_at_the_start(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "fake")
    daemon.log.parent.mkdir()
    (tmp_path / "victim").write_text("precious")
    daemon.log.symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((daemon.log, "symbolic link"), (tmp_path / "pipe", "no regular file")):
        for flag, code in (("--log-file", "log_file_unusable"), ("--pid-file", "pid_file_unusable")):
            started = cli(*daemon.arguments, "--detach", flag, str(path))
            assert started.returncode == 1
            assert code in started.stderr
            assert reason in started.stderr
    assert (tmp_path / "victim").read_text() == "precious"
    null = cli(*daemon.arguments, "--detach", "--log-file", "/dev/null")
    assert null.returncode == 0, null.stderr
    os.kill(daemon.pid, signal.SIGUSR1)
    assert daemon.serves()
    assert cli("stop", "--socket", str(daemon.socket)).returncode == 0


def test_signals_that_end_nothing(tmp_path: Path) -> None:
    with detached(tmp_path) as daemon:
        [engine] = children(daemon.pid)
        for number in (*HARMLESS, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(daemon.pid, number)
        for number in (*FOR_CHILDREN, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(engine, number)
        assert daemon.serves()
        assert children(daemon.pid) == [engine]


@contextmanager
def foreground(tmp_path: Path, *before: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Daemon]]:
    """A daemon with a terminal of its own: the process, our end of the terminal, and the daemon."""
    daemon = Daemon(tmp_path, "fake")
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", TAKE_TERMINAL, *before]
    command += [sys.executable, "-m", "semipd.commands.daemon", *daemon.arguments]
    with (tmp_path / "err").open("w") as stderr:
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=stderr, start_new_session=True, env=ENV, cwd=tmp_path
        )
    os.close(theirs)
    try:
        eventually_now(lambda: "starting the engine process:" in (tmp_path / "err").read_text(), "no engine")
        eventually_now(daemon.serves, "not ready")
        yield process, ours, daemon
    finally:
        process.kill()
        process.wait()


def test_a_terminal_that_closes_stops_a_foreground_daemon(tmp_path: Path) -> None:
    with foreground(tmp_path) as (process, ours, daemon):
        process.send_signal(signal.SIGHUP)  # from somebody, while the terminal is there
        process.send_signal(signal.SIGUSR1)
        eventually_now(lambda: "no log file to open again" in (tmp_path / "err").read_text(), "SIGUSR1")
        assert daemon.serves()
        os.close(ours)
        assert process.wait(LIMIT_S) == 0
    said = (tmp_path / "err").read_text()
    assert "the terminal was closed" in said
    assert "Traceback" not in said


def test_nohup_outlives_the_terminal(tmp_path: Path) -> None:
    with foreground(tmp_path, "nohup") as (process, ours, daemon):
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert daemon.serves()
        assert cli("stop", "--socket", str(daemon.socket)).returncode == 0
        process.wait(LIMIT_S)
