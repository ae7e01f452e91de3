"""A daemon serves, its load is recorded, and the planner plans from the file: three processes and their
exits."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.daemon_process import ENV, LIMIT_S, fake_process
from support.patience import Patience
from support.simulated import azure_file

from semipd.client import Client

PLAN = [sys.executable, "-m", "semipd.plan.command", "--gpu", "h200", "--model", "llama-3-70b-w8"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 requests, 20 of them with one beginning."""
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "load"
    with fake_process(folder) as daemon:
        command = [sys.executable, "-m", "semipd.commands.daemon", "record", str(path)]
        process = subprocess.Popen([*command, "--socket", str(daemon.socket_path)], env=ENV)
        patience = Patience(LIMIT_S)
        while not path.exists():
            assert not patience.is_over()
            time.sleep(0.01)
        with Client.connect(daemon.socket_path) as client:
            for number in range(50):
                prompt = [7] * 200 if number % 5 < 2 else [number + 20] * (150 + number)
                for _ in client.generate([*prompt, number], max_tokens=1 + number % 3):
                    pass
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    return path


def test_the_planner_plans_from_what_a_daemon_recorded(recording: Path, tmp_path: Path) -> None:
    command = [*PLAN, "--trace", str(recording), "--attainment", "50", "--policies", "chunked:1024+fcfs"]
    command += ["--seeds", "1", "--window", "10", "--jobs", "1", "--rate", "3", "--json", "-"]
    done = subprocess.run(
        command, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["complete"], answer["simulated"]) == (True, True)
    asked = answer["question"]
    assert (asked["form"], asked["requests"], asked["requests_unserved"]) == ("recorded", 50, 0)
    assert asked["targets"]["default"]["ttft_ms"] == 500.0, "the daemon's own"
    [carried] = answer["carries"]
    assert carried["policy"] == "chunked:1024+fcfs"
    assert carried["rate"]["mean"] > 3
    assert answer["needed"] == [{"gpu": "h200", "policy": "chunked:1024+fcfs", "num_gpus": 1}]


def test_ctrl_c_shows_what_is_known_and_leaves_no_process(tmp_path: Path) -> None:
    """The first policy is known at once: under these targets nothing is carried. The second takes long."""
    rows = [(idx * 0.1, 3000 + idx, 200) for idx in range(300)]
    command = [*PLAN, "--trace", str(azure_file(tmp_path, rows)), "--slo", "500/50", "--window", "20000"]
    command += ["--policies", "chunked:1024", "--seeds", "1", "--jobs", "2", "--json", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    patience = Patience(LIMIT_S)
    while not (children := children_of(process.pid)):
        assert not patience.is_over()
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (130, "")
    assert "Not all of it was simulated." in out
    assert json.loads((tmp_path / "out").read_text())["complete"] is False
    patience = Patience(LIMIT_S)
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert not patience.is_over(), "processes that simulate are left behind"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in told]
