"""Every command of docs/quickstart.md, in order, in one shell, with the real model if it can be had."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "quickstart.md"
BIN = Path(sys.executable).parent
PORT = "8808"
LIMIT_S = 900

pytestmark = [pytest.mark.timeout(LIMIT_S + 60), pytest.mark.soak]


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """The default address and socket may be those of a daemon of yours."""
    with tempfile.TemporaryDirectory(prefix="semipd-quick-") as runtime:
        mine = {"XDG_RUNTIME_DIR": runtime, "SEMIPD__SERVER__PORT": str(free_port())}
        yield os.environ | mine | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def test_every_command(environment: dict[str, str], tmp_path: Path) -> None:
    fetch, *others = blocks()
    fetched = subprocess.run(
        ["semipd-daemon", "fetch", "smollm2"], env=environment, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        pytest.skip(fetched.stderr.strip().splitlines()[-2])
    script = "set -e\n" + "\n".join([fetch, *others])
    script = script.replace(PORT, environment["SEMIPD__SERVER__PORT"])
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        subprocess.run(["semipd-daemon", "stop", "--now"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "The capital of France is Paris." in done.stdout
    assert "● LIVE" in done.stdout
    assert (tmp_path / "story.txt").read_text()
    assert list(Path(environment["XDG_RUNTIME_DIR"]).rglob("*.sock")) == []
