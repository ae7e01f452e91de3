"""The whole daemon on the simulated device: made-up text in real time, printed by the demo's tokenizer."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_tokenizers import byte_level, save

ROOT = Path(__file__).parents[2]
START = """
import sys
from pathlib import Path
from semipd.daemon.model import files as model_files
model_files.DEMO_FOLDER = Path(sys.argv[1])
from semipd.commands.daemon import main
sys.exit(main(["start", *sys.argv[2:]]))
"""


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A daemon whose bundled demo model is a tokenizer made for this test."""
    demo = folder / "demo"
    demo.mkdir(exist_ok=True)
    save(byte_level(), demo)
    (demo / "config.json").write_text(json.dumps({"vocab_size": byte_level().get_vocab_size()}))
    options = ["--port", "0", "--socket", str(folder / "s.sock"), *arguments]
    command = [sys.executable, "-c", START, str(demo), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with start(tmp_path, "--device", "sim:h200", "--model", "llama-3-8b") as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            assert first.startswith("semipd serves llama-3-8b at http"), (tmp_path / "log").read_text()
            yield first.split(" at ")[1].strip()
        finally:
            process.terminate()
            process.wait(30)


def fetch(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_it_serves_made_up_text(url: str) -> None:
    body = {
        "model": "llama-3-8b",
        "prompt": "Once upon a time",
        "max_tokens": 40,
        "seed": 7,
        "ignore_eos": True,
    }
    first, again = fetch(f"{url}/v1/completions", body), fetch(f"{url}/v1/completions", body)
    assert first["usage"]["completion_tokens"] == 40
    assert first["choices"][0]["text"] == again["choices"][0]["text"] != ""
    assert (
        fetch(f"{url}/v1/completions", body | {"seed": 8})["choices"][0]["text"]
        != first["choices"][0]["text"]
    )
    status = fetch(f"{url}/v1/status")
    assert status["device_info"]["unit"] == "SM"
    assert "made-up tokens" in status["device_info"]["name"]
    assert status["kv"]["used_blocks"] == 0
    assert status["lanes"]["decode"]["busy_ms"] > 0


def test_a_model_without_a_row_stops_the_start(tmp_path: Path) -> None:
    with start(tmp_path, "--device", "sim:h200", "--model", "gpt-5") as process:
        assert process.wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert "unknown_model" in said
    assert "llama-3-8b" in said
    assert "Traceback" not in said
