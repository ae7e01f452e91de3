"""semipd-top without a screen, as a process of its own, against a whole daemon."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon_process import DaemonProcess, fake_process

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tui")])}
TOP = [sys.executable, "-m", "semipd_top.cli"]
LIMIT_S = 60


def top(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = ENV | environment
    return subprocess.run(
        [*TOP, *arguments], capture_output=True, text=True, timeout=LIMIT_S, env=env, stdin=subprocess.DEVNULL
    )


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with fake_process(tmp_path_factory.mktemp("daemon")) as process:
        yield process


def test_json_prints_an_object_a_frame(daemon: DaemonProcess) -> None:
    done = top("--socket", str(daemon.socket_path), "--json", "--count", "3", "--interval", "0.25")
    assert (done.returncode, done.stderr) == (0, "")
    frames = objects(done.stdout)
    assert len(frames) == 3
    assert all(set(frame) == {"state", "events", "lost"} for frame in frames)
    times_s = [frame["state"]["at_s"] for frame in frames]
    assert times_s == sorted(set(times_s))


def test_json_has_the_events(daemon: DaemonProcess) -> None:
    arguments = ["--socket", str(daemon.socket_path), "--json", "--interval", "0.25"]
    with subprocess.Popen([*TOP, *arguments], stdout=subprocess.PIPE, text=True, env=ENV) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        daemon.client("generate", "hello", "--max-tokens", "3")
        kinds: list[str] = []
        while "finished" not in kinds:
            kinds += [event["kind"] for event in json.loads(watching.stdout.readline())["events"]]
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait(LIMIT_S) == 130
    assert first["events"] == []
    assert kinds[0] == "arrived"


def test_json_once_prints_one_object(daemon: DaemonProcess) -> None:
    done = top("--socket", str(daemon.socket_path), "--json", "--once")
    assert done.returncode == 0
    [frame] = objects(done.stdout)
    assert frame["state"]["state"] == "ready"


def test_once_prints_the_first_screen(daemon: DaemonProcess) -> None:
    small = top("--socket", str(daemon.socket_path), "--once", COLUMNS="80", LINES="24")
    assert (small.returncode, small.stderr) == (0, "")
    lines = small.stdout.splitlines()
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert "LIVE" in lines[0]
    assert "\x1b" not in small.stdout
    large = top("--socket", str(daemon.socket_path), "--once", COLUMNS="200", LINES="50").stdout.splitlines()
    assert len(large) == 50
    assert 80 < max(map(len, large)) <= 200


@pytest.mark.parametrize("mode", ["--once", "--json"])
def test_no_daemon_is_an_error_at_once(tmp_path: Path, mode: str) -> None:
    done = top("--socket", str(tmp_path / "none.sock"), mode)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: No daemon answers")
    assert done.stderr.endswith("[daemon_not_running]\n")


def test_a_daemon_that_ends_ends_the_stream(tmp_path: Path) -> None:
    with fake_process(tmp_path) as daemon:
        arguments = ["--socket", str(daemon.socket_path), "--json", "--record", str(tmp_path / "r")]
        with subprocess.Popen(
            [*TOP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
        ) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            watching.stdout.readline()
            daemon.process.terminate()
            _, said = watching.communicate(timeout=LIMIT_S)
    assert watching.returncode == 1
    assert "[shutting_down]" in said
    last = top("--replay", str(tmp_path / "r"), "--once")
    assert last.returncode == 0
    assert "DISCONNECTED" in last.stdout


def test_a_closed_pipe_ends_silently(daemon: DaemonProcess) -> None:
    arguments = ["--socket", str(daemon.socket_path), "--json", "--interval", "0.25"]
    with subprocess.Popen(
        [*TOP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(LIMIT_S) == 0
        assert watching.stderr.read() == ""


def test_what_was_recorded_is_replayed(daemon: DaemonProcess, tmp_path: Path) -> None:
    path = str(tmp_path / "r.jsonl.gz")
    arguments = ["--socket", str(daemon.socket_path), "--json", "--count", "4", "--interval", "0.25"]
    recorded = top(*arguments, "--record", path)
    assert recorded.returncode == 0, recorded.stderr
    replayed = top("--replay", path, "--json")
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert objects(replayed.stdout) == objects(recorded.stdout)
    assert objects(top("--replay", path, "--json", "--speed", "1000").stdout) == objects(recorded.stdout)
    [last] = objects(top("--replay", path, "--json", "--once").stdout)
    assert last == objects(recorded.stdout)[-1]
    screen = top("--replay", path, "--once", COLUMNS="100", LINES="30")
    assert (screen.returncode, len(screen.stdout.splitlines())) == (0, 30)
    again = top(*arguments, "--record", path)
    assert again.returncode == 1
    assert "[file_exists]" in again.stderr


def test_a_cut_recording_is_printed_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert (
        top("--demo", "--json", "--count", "3", "--interval", "0.25", "--record", str(path)).returncode == 0
    )
    path.write_bytes(path.read_bytes()[:-60])
    done = top("--replay", str(path), "--json")
    assert done.returncode == 1
    assert len(objects(done.stdout)) in (2, 3)
    assert "[recording_cut]" in done.stderr
    once = top("--replay", str(path), "--once")
    assert once.returncode == 1
    assert len(once.stdout.splitlines()) == 24


def test_a_recording_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r"
    top("--socket", str(tmp_path / "none"), "--json", "--record", str(path))
    for mode in (["--once"], ["--once", "--json"]):
        done = top("--replay", str(path), *mode)
        assert (done.returncode, done.stdout) == (1, "")
        assert "[no_frames]" in done.stderr


def test_the_demo_shows_something_at_once() -> None:
    done = top("--demo", "--once")
    assert done.returncode == 0, done.stderr
    assert "132 SMs" in done.stdout


def test_a_foreign_socket_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        arguments = ["--socket", str(tmp_path / "s"), "--once"]
        with subprocess.Popen([*TOP, *arguments], stderr=subprocess.PIPE, text=True, env=ENV) as watching:
            peer, _ = listener.accept()
            peer.close()
            _, said = watching.communicate(timeout=LIMIT_S)
    assert watching.returncode == 6
    assert "[connection_lost]" in said
