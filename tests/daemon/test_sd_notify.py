"""Word to systemd: over real sockets, by path and by abstract name; and the unit file."""

import asyncio
import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.daemon import running, until
from support.daemon_process import scripted_process

from semipd.config.config import default_engine_settings
from semipd.daemon.host import sd_notify
from semipd.daemon.host.sd_notify import Notifier

UNIT = Path(__file__).parents[2] / "configs" / "semipd.service"


class Listener:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.said: list[str] = []

    def hear(self) -> list[str]:
        """All lines so far."""
        try:
            while True:
                self.said += self.socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.said


@contextmanager
def listening(address: str) -> Iterator[Listener]:
    listener = Listener(address)
    with listener.socket:
        yield listener


def addresses(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "notify"), f"@semipd-test-{uuid.uuid4().hex}"]


@pytest.mark.parametrize("kind", [0, 1])
def test_words_arrive(tmp_path: Path, kind: int) -> None:
    address = addresses(tmp_path)[kind]
    environ = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "X": "y",
    }
    with listening(address) as listener:
        notifier = Notifier.from_environment(environ)
        notifier.say(READY="1", STATUS="two\nlines")
        assert listener.hear() == ["READY=1", "STATUS=two lines"]
        notifier.close()
    assert notifier.watchdog_s == 3.0
    assert environ == {"X": "y"}, "children do not inherit what is meant for us"


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "vsock:2:1"}],
)
def test_nobody_listens(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    notifier.say(READY="1")
    notifier.close()
    assert notifier.watchdog_s is None


@pytest.mark.parametrize(("micros", "pid"), [("5000000", "1"), ("", ""), ("x", ""), ("0", "ours")])
def test_no_watchdog_of_ours(micros: str, pid: str) -> None:
    pid = str(os.getpid()) if pid == "ours" else pid
    assert Notifier.from_environment({"WATCHDOG_USEC": micros, "WATCHDOG_PID": pid}).watchdog_s is None


def test_a_listener_that_is_gone_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    for _ in range(3):
        notifier.say(STATUS="x")
    notifier.close()
    assert len(caplog.records) == 1


async def test_the_watchdog_is_fed_only_while_there_is_progress(tmp_path: Path) -> None:
    moves = True
    with listening(str(tmp_path / "notify")) as listener:
        notifier = Notifier(str(tmp_path / "notify"), watchdog_s=0.06)
        async with notifier.watched(lambda: moves, lambda: {"STATUS": f"moves {moves}"}):
            await until(lambda: listener.hear().count("WATCHDOG=1") > 3)
            moves = False
            await until(lambda: "STATUS=moves False" in listener.hear())
            listener.said.clear()
            await until(lambda: len(listener.hear()) > 5)
            assert "WATCHDOG=1" not in listener.said
            moves = True
            await until(lambda: "WATCHDOG=1" in listener.hear())
        notifier.close()


async def test_what_progress_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake")) as daemon:
        services = daemon.services
        assert services.makes_progress()
        assert services.in_one_line() == "serving bytes: 0 requests, 0 of them waiting"
        for state, content in (("starting", True), ("restarting", True), ("failed", False), ("ready", True)):
            monkeypatch.setattr(services.supervisor, "state", state)
            assert services.makes_progress() == content, state
        monkeypatch.setattr(type(services.supervisor), "last_answer_s", property(lambda _: -1e6))
        assert not services.makes_progress(), "silent for longer than the supervisor would let it be"
        services.drain.begin("ann", limit_s=100)
        assert services.in_one_line().startswith("draining: 0 requests, ")


def test_a_daemon_under_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = addresses(tmp_path)[1]
    monkeypatch.setattr(
        "support.daemon_process.ENV",
        os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NOTIFY_SOCKET": address,
            "WATCHDOG_USEC": "300000",
            "WATCHDOG_PID": "",
        },
    )
    with listening(address) as listener, scripted_process(tmp_path, step_ms=1) as daemon:
        asyncio.run(until(lambda: {"READY=1", "WATCHDOG=1"} <= set(listener.hear())))
        told = " ".join(listener.said)
        assert "STATUS=engine starting" in told
        assert "EXTEND_TIMEOUT_USEC=30000000" in told
        assert "STOPPING=1" not in told
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(40)
        assert "STOPPING=1" in listener.hear()


# ---- the unit ----------------------------------------------------------------------------------------


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_says_what_the_daemon_does() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert float(service["WatchdogSec"]) > 3 * sd_notify.INTERVAL_S
    assert service["KillMode"] == "mixed", "the engine must not get the signal that drains the daemon"
    for option in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID", "LockPersonality"):
        assert service[option] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    started = service["ExecStart"].split()
    assert started[1:3] == ["start", "--config"]
    assert "HUP" in service["ExecReload"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "semipd.service"
    copy.write_text(UNIT.read_text().replace("/opt/semipd/bin/semipd-daemon", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "semipd" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
