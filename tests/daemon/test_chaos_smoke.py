"""scripts/chaos.py for 15 seconds on the fake device. With this seed engines die, also in their start."""

import json
import subprocess
import sys
from pathlib import Path

import chaos
import pytest

SCRIPT = Path(chaos.__file__)
SEED = 618
FAULTS = (
    "kill-engine,stop-engine,pause-engine,full-queue,slow-readers,disconnects,full-log,malformed,"
    "kill-start,drain-crash,changes,poison"
)
"""All but those that take long by nature."""
LIMIT_S = 400


@pytest.mark.timeout(LIMIT_S + 20)
def test_nothing_is_lost_changed_leaked_or_left(tmp_path: Path) -> None:
    document = tmp_path / "result.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--minutes",
        "0.25",
        "--seed",
        str(SEED),
        "--faults",
        FAULTS,
        "--json",
        str(document),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    result = json.loads(document.read_text())
    assert result["problems"] == []
    assert result["engine_deaths"] >= 1, "no engine was killed"
    assert result["requests_resumed"] >= 1, "no request was under way then"
    assert result["fates"]["finished"] > 50
    assert result["accepted"] == sum(result["fates"].values()) - result["fates"].get("refused", 0)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    for arguments, words in (
        (["--faults", "kill-worker", "--minutes", "0.01"], "has no workers"),
        (["--faults", "earthquake"], "no such fault: earthquake"),
    ):
        run = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert run.returncode != 0
        assert words in run.stderr
        assert "Traceback" not in run.stderr
