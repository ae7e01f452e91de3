"""Real daemons: what becomes of their children when they are killed, and of them when their engine is."""

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
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.daemon_process import ENV, LIMIT_S, SUPPORT, model_folder
from support.eventually import eventually_now

ORPHAN_LIMIT_S = 2.0
"""What is promised: so long after the daemon's SIGKILL no child is left."""


def descendants(pid: int) -> set[int]:
    """Children of a process, and theirs."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def started(folder: Path, *command: str) -> "Iterator[subprocess.Popen[str]]":
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=ENV
        )
    assert process.stdout is not None
    try:
        yield process
    finally:
        orphans = descendants(process.pid) if process.poll() is None else set()
        process.kill()
        process.wait(LIMIT_S)
        process.stdout.close()
        eventually_now(lambda: not any(map(runs, orphans)), "the test's processes end")


def announced(process: "subprocess.Popen[str]", folder: Path) -> str:
    """Wait until it is ready; its address."""
    assert process.stdout is not None
    said = ""
    while "try:" not in said:
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        said += line
    found = re.search(r"http://\S+", said)
    assert found is not None
    return found[0]


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def cli(folder: Path, device: str) -> list[str]:
    command = ["-m", "semipd.commands.daemon", "start", "--port", "0", "--socket", str(folder / "d.sock")]
    if device == "cpu":
        return [*command, "--set", "kv.bytes=33554432"]
    return [*command, "--device", device, "--model", str(model_folder(folder / "model"))]


@pytest.mark.parametrize(
    ("device", "num_children"), [("fake", 1), pytest.param("cpu", 3, marks=pytest.mark.soak)]
)
def test_no_child_survives_a_killed_daemon(tmp_path: Path, device: str, num_children: int) -> None:
    with started(tmp_path, *cli(tmp_path, device)) as process:
        announced(process, tmp_path)
        children = descendants(process.pid)
        assert len(children) == num_children
        process.kill()
        process.wait(LIMIT_S)
        eventually_now(lambda: not any(map(runs, children)), f"{device}: children end", ORPHAN_LIMIT_S)


def test_no_child_survives_a_daemon_killed_while_the_engine_starts(tmp_path: Path) -> None:
    """The engine is importing, or the lane workers are: nobody has said a word yet."""
    with started(tmp_path, *cli(tmp_path, "cpu")) as process:
        for least in (1, 2):
            eventually_now(partial(lambda least: len(descendants(process.pid)) >= least, least), "children")
        children = descendants(process.pid)
        process.kill()
        process.wait(LIMIT_S)
        eventually_now(lambda: not any(map(runs, children)), "children end", ORPHAN_LIMIT_S)


def test_a_stopped_engine_does_not_outlive_its_daemon_either(tmp_path: Path) -> None:
    with started(tmp_path, *cli(tmp_path, "fake")) as process:
        announced(process, tmp_path)
        [engine] = descendants(process.pid)
        os.kill(engine, signal.SIGSTOP)
        process.kill()
        process.wait(LIMIT_S)
        eventually_now(lambda: not runs(engine), "the engine ends", ORPHAN_LIMIT_S)


def scripted(folder: Path, **script: Any) -> list[str]:
    model = model_folder(folder / "model")
    return [str(SUPPORT / "scripted_daemon.py"), str(model), str(folder / "d.sock"), json.dumps(script)]


def test_a_daemon_outlives_its_engine(tmp_path: Path) -> None:
    with started(tmp_path, *scripted(tmp_path, crash_on=40)) as process:
        url = announced(process, tmp_path)
        status, answer = post(url, {"prompt": [40, 41], "max_tokens": 50})
        assert (status, answer["error"]["code"]) == (500, "engine_crashed")
        status, answer = post(url, {"prompt": [41, 42], "max_tokens": 5})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
        process.terminate()
        assert process.wait(LIMIT_S) == 0


def test_a_crash_loop_ends_the_daemon_with_a_message(tmp_path: Path) -> None:
    with started(tmp_path, *scripted(tmp_path, dies_when_asked=True)) as process:
        begun_s = time.monotonic()
        assert process.wait(LIMIT_S) == 1, time.monotonic() - begun_s
    said = (tmp_path / "log").read_text()
    assert "The engine died 5 times in a row" in said
    assert "supervision.max_deaths=5" in said
    assert "The daemon ends." in said
    assert "Traceback" not in said
    assert not (tmp_path / "d.sock").exists()
