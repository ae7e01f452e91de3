"""The three commands as processes: standard streams that are closed, full or of another encoding, signals,
sockets at which no good daemon listens. Every end is in the table of exit codes, and none is a traceback."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fuzzlib.bad_sockets import bad_places
from fuzzlib.command_cases import GOOD
from fuzzlib.command_runs import run_cases
from support.daemon_process import LIMIT_S, DaemonProcess, fake_process, model_folder
from support.patience import Patience

from semipd.client import blocking
from semipd.command_line import exit_codes
from semipd.core.errors import SemipdError

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tui")])}
ENV.pop("PYTHONUNBUFFERED", None)
SCRIPT = "import sys; from semipd.command_line.entry import {} as run; sys.exit(run())"


def command(name: str, *arguments: str) -> list[str]:
    """As the installed script runs it."""
    return [sys.executable, "-c", SCRIPT.format(name), *arguments]


def ended(name: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    given: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "errors": "replace",
        "timeout": LIMIT_S,
        "env": ENV,
    }
    done = subprocess.run(command(name, *arguments), **(given | options))
    assert "Traceback" not in (done.stderr or ""), done.stderr
    return done


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with fake_process(tmp_path_factory.mktemp("daemon")) as process:
        yield process


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with bad_places(tmp_path_factory.mktemp("bad")) as paths:
        yield paths


def one_line(text: str) -> bool:
    return len(text.strip().splitlines()) == 1


# ---- what goes in and out ---------------------------------------------------------------------------


def fed(content: bytes, folder: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """semipd-client with this on its standard input."""
    path = folder / "input"
    path.write_bytes(content)
    with path.open() as file:
        return ended("client", *arguments, stdin=file, **options)


@pytest.mark.parametrize("arguments", [["generate", "-"], ["chat"]])
def test_input_that_is_no_text_is_refused(
    daemon: DaemonProcess, tmp_path: Path, arguments: list[str]
) -> None:
    done = fed(b"caf\xe9", tmp_path, *arguments, "--socket", str(daemon.socket_path))
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")
    assert one_line(done.stderr)
    assert "byte 0xe9 after 3 characters" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("client", ["generate", "\udcff"]),
        ("client", ["generate", "a", "--stop", "\udcff"]),
        ("daemon", ["stop", "--reason", "\udcff"]),
        ("daemon", ["config", "--set", "model.name=\udcff"]),
        ("top", ["--theme", "\udcff"]),
    ],
)
def test_arguments_that_are_no_text_are_refused(name: str, arguments: list[str]) -> None:
    done = ended(name, *arguments)
    assert done.returncode == exit_codes.USAGE
    assert "not valid utf-8: byte 0xff" in done.stderr


def test_the_environment_that_is_no_text_is_refused() -> None:
    done = ended("daemon", "config", env=ENV | {"SEMIPD__MODEL__NAME": "\udcff"})
    assert done.returncode == exit_codes.USAGE
    assert "UTF-8" in done.stderr


def test_input_in_the_terminals_encoding_is_read(daemon: DaemonProcess, tmp_path: Path) -> None:
    env = ENV | {"PYTHONIOENCODING": "latin-1"}
    where = ["--socket", str(daemon.socket_path), "--max-tokens", "2"]
    done = fed(b"caf\xe9", tmp_path, "generate", "-", *where, env=env)
    assert done.returncode == 0, done.stderr


def test_input_without_an_end_is_refused(daemon: DaemonProcess) -> None:
    with Path("/dev/zero").open() as zeros:
        done = ended("client", "generate", "-", "--socket", str(daemon.socket_path), stdin=zeros)
    assert done.returncode == exit_codes.FAILED
    assert "[input_too_long]" in done.stderr


def commands_with_output(socket: str) -> list[tuple[str, list[str]]]:
    where = ["--socket", socket]
    return [
        ("client", ["generate", "Ω", *where, "--max-tokens", "3"]),
        ("client", ["status", *where]),
        ("client", ["watch", "--count", "1", *where]),
        ("daemon", ["status", *where]),
        ("daemon", ["config"]),
        ("daemon", ["completion", "bash"]),
        ("top", ["--once", *where]),
        ("top", ["--json", "--once", *where]),
        ("top", ["--help"]),
    ]


@pytest.mark.parametrize("kind", ["full", "full, unbuffered", "closed", "left"])
def test_output_that_cannot_be_written(daemon: DaemonProcess, kind: str) -> None:
    def run(name: str, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
        env = ENV | ({"PYTHONUNBUFFERED": "1"} if "unbuffered" in kind else {})
        if kind == "closed":
            closing = ["sh", "-c", 'exec "$@" >&-', "sh", *command(name, *arguments)]
            return subprocess.run(closing, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, env=env)
        if kind == "left":
            reader, writer = os.pipe()
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                return ended(name, *arguments, stdout=pipe, env=env)
        with Path("/dev/full").open("w") as full:
            return ended(name, *arguments, stdout=full, env=env)

    for name, arguments in commands_with_output(str(daemon.socket_path)):
        done = run(name, arguments)
        if kind == "left":
            assert (done.returncode, done.stderr) == (0, ""), (name, arguments)
        else:
            assert done.returncode == exit_codes.FAILED, (name, arguments, done)
            assert one_line(done.stderr), (name, arguments, done)
            assert "[output_unwritable]" in done.stderr, (name, arguments, done)
            assert "No space left" in done.stderr or "Bad file descriptor" in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_the_terminal_cannot_show_is_replaced(daemon: DaemonProcess, encoding: str) -> None:
    env = ENV | {"PYTHONIOENCODING": encoding}
    where = ["--socket", str(daemon.socket_path)]
    for name, arguments in (
        ("client", ["generate", "Ω", "--max-tokens", "3", *where]),
        ("daemon", ["status", *where]),
    ):
        done = ended(name, *arguments, env=env)
        assert (done.returncode, done.stderr) == (0, ""), (name, arguments)
        assert done.stdout
    screen = ended("top", "--demo", "--once", env=env)
    assert screen.returncode == 0
    assert "?" in screen.stdout


@pytest.mark.parametrize("size", ["0", "-5", "x", "1", "9" * 30])
def test_a_terminal_of_an_odd_size(size: str) -> None:
    done = ended("top", "--demo", "--once", env=ENV | {"COLUMNS": size, "LINES": size})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_configuration_is_utf_8_whatever_the_terminal_is() -> None:
    done = ended("daemon", "config", "--model", "Ω", env=ENV | {"PYTHONIOENCODING": "latin-1"}, errors=None)
    assert 'name = "Ω"' in done.stdout


def test_closed_streams(daemon: DaemonProcess, tmp_path: Path) -> None:
    def run(closing: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        words = ["sh", "-c", f'exec "$@" {closing}', "sh", *command("client", *arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=ENV)

    no_input = run("<&-", "generate", "-")
    assert no_input.returncode == exit_codes.FAILED
    assert "[input_unreadable]" in no_input.stderr
    assert run("2>&-", "status", "--socket", str(tmp_path / "none")).returncode == exit_codes.NOT_RUNNING
    where = ("--socket", str(daemon.socket_path))
    assert run("<&- 2>&-", "status", *where).returncode == 0
    assert run("<&- >&- 2>&-", "status", *where).returncode == exit_codes.FAILED


def test_a_daemon_serves_though_its_announcement_cannot_be_written(tmp_path: Path) -> None:
    socket, log = tmp_path / "s.sock", tmp_path / "log"
    model = str(model_folder(tmp_path / "model"))
    arguments = ["start", "--device", "fake", "--port", "0", "--model", model, "--socket", str(socket)]
    with Path("/dev/full").open("w") as full, log.open("w") as stderr:
        process = subprocess.Popen(command("daemon", *arguments), stdout=full, stderr=stderr, env=ENV)
    try:
        patience = Patience(LIMIT_S)
        while "standard output cannot be written" not in log.read_text() and not patience.is_over():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        assert ended("client", "generate", "a", "--max-tokens", "1", "--socket", str(socket)).returncode == 0
    finally:
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    assert "Traceback" not in log.read_text()


# ---- signals ----------------------------------------------------------------------------------------


def test_ctrl_c_at_every_moment(daemon: DaemonProcess) -> None:
    """After the interpreter's own start, which is not ours."""
    script = SCRIPT.replace("sys.exit", "import os; os.close({}); sys.exit")

    def interrupted(idx: int) -> tuple[int, str]:
        name = ("client", "daemon", "top")[idx % 3]
        arguments = {"client": ["watch"], "daemon": ["status"], "top": ["--json"]}[name]
        reader, writer = os.pipe()
        words = [sys.executable, "-c", script.format(name, writer), *arguments]
        with subprocess.Popen(
            [*words, "--socket", str(daemon.socket_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
            pass_fds=[writer],
        ) as process:
            os.close(writer)
            os.read(reader, 1)
            os.close(reader)
            time.sleep(0.01 + 0.01 * idx)
            process.send_signal(signal.SIGINT)
            try:
                _, said = process.communicate(timeout=LIMIT_S)
            finally:
                process.kill()
        return process.returncode, said

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(interrupted, range(30)))
    assert {code for code, _ in ends} <= {exit_codes.INTERRUPTED, -signal.SIGINT, 0}
    assert {said for _, said in ends} == {""}
    assert exit_codes.INTERRUPTED in {code for code, _ in ends}


def test_a_vanished_terminal_is_a_reader_that_has_left() -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    done = ended("client", "completion", "bash", stdout=theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (exit_codes.DONE, "")


def test_sigterm_puts_the_terminal_back() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("top", "--demo"), stdin=theirs, stdout=theirs, stderr=theirs, env=ENV | {"TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while b"\x1b[?1049h" not in seen:
        seen += os.read(ours, 65536)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # nobody has it open any more
        pass
    os.close(ours)
    assert process.wait(LIMIT_S) == exit_codes.TERMINATED
    assert b"\x1b[?1049l" in seen
    assert b"Traceback" not in seen


# ---- where no good daemon listens ------------------------------------------------------------------

ENDS = {
    "missing": exit_codes.NOT_RUNNING,
    "left-over": exit_codes.NOT_RUNNING,
    "file": exit_codes.FAILED,
    "folder": exit_codes.FAILED,
    "file/below": exit_codes.FAILED,
    "too long": exit_codes.FAILED,
    "silent": exit_codes.TIMED_OUT,
    "closing": exit_codes.CONNECTION_LOST,
    "other version": exit_codes.CONNECTION_LOST,
    "no hello": exit_codes.CONNECTION_LOST,
    "an error of no form": exit_codes.CONNECTION_LOST,
    "empty answers": exit_codes.CONNECTION_LOST,
    "answers of another kind": exit_codes.CONNECTION_LOST,
    "http": exit_codes.CONNECTION_LOST,
}


LOOKS = {"client": ["status"], "daemon": ["status"], "top": ["--once"]}


def test_every_command_ends_alike(places: dict[str, str]) -> None:
    def run(case: tuple[str, str]) -> "subprocess.CompletedProcess[str]":
        name, place = case
        return ended(name, *LOOKS[name], "--socket", places[place])

    cases = [(name, place) for place in ENDS for name in LOOKS]
    with ThreadPoolExecutor(16) as pool:
        ends = dict(zip(cases, pool.map(run, cases), strict=True))
    wrong = {case: done for case, done in ends.items() if done.returncode != ENDS[case[1]]}
    assert not wrong
    assert all(done.stderr.strip() for done in ends.values())


def test_a_daemon_that_falls_silent_is_noticed(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "SILENCE_LIMIT_S", 0.1)
    monkeypatch.setattr(blocking, "ANSWER_LIMIT_S", 0.2)
    with blocking.Client.connect(places["greeting and silent"]) as client:
        with pytest.raises(SemipdError) as silent:
            list(client.generate("a"))
        assert silent.value.code == "daemon_silent"


def test_a_daemon_that_takes_its_time_is_waited_for(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "SILENCE_LIMIT_S", 0.05)
    with blocking.Client.connect(daemon.socket_path) as client:
        states = client.subscribe(interval_ms=1000)
        assert [next(states).state["state"] for _ in range(2)] == ["ready", "ready"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_permission_denied_is_not_not_running(daemon: DaemonProcess, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    for name, arguments in (("client", ["status"]), ("daemon", ["status"]), ("top", ["--once"])):
        done = ended(name, *arguments, "--socket", str(closed / "s"))
        assert done.returncode == exit_codes.NO_PERMISSION
        assert "permission_denied" in done.stderr


# ---- for people and for programs -------------------------------------------------------------------


def test_both_commands_show_the_same_status(daemon: DaemonProcess) -> None:
    where = ["--socket", str(daemon.socket_path)]
    texts = [ended(name, "status", *where).stdout for name in ("client", "daemon")]
    facts = [[line.split()[0] for line in text.splitlines()] for text in texts]
    assert facts[0] == facts[1]
    assert "KV" in facts[0]
    documents = [json.loads(ended(name, "status", "--json", *where).stdout) for name in ("client", "daemon")]
    assert set(documents[0]) == set(documents[1])


def test_a_share_of_the_fuzzer(daemon: DaemonProcess, places: dict[str, str], tmp_path: Path) -> None:
    slow = ("silent", "half a frame", "full", "greeting and silent", "trickle")
    quick = {name: path for name, path in places.items() if name not in slow}
    tallies = run_cases(5, range(40), quick | {GOOD: str(daemon.socket_path)}, tmp_path)
    assert [wrong for tally in tallies.values() for wrong in tally.violations] == []
    assert sum((tally.codes for tally in tallies.values()), Counter()).total() == 40
