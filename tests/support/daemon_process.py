"""A whole daemon in a process of its own, around the scripted engine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import tiny_tokenizers

SUPPORT = Path(__file__).parent
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
LIMIT_S = 240
"""For what takes a second on a quiet machine; the limit of a test is pytest's."""


def model_folder(folder: Path) -> Path:
    """A tokenizer and a configuration: all the fake device and the scripted engine need."""
    folder.mkdir(exist_ok=True)
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder, chat_template=template)
    config = {"vocab_size": 400, "max_position_embeddings": 512, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass
class DaemonProcess:
    process: subprocess.Popen[str]
    socket_path: Path
    port: int

    def client(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """semipd-client with these arguments."""
        return self._run("semipd.commands.client", *arguments, **options)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """semipd-daemon with these arguments; the socket is this daemon's unless they name another."""
        return self._run("semipd.commands.daemon", *arguments)

    def _run(self, module: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        socket = [] if "--socket" in arguments else ["--socket", str(self.socket_path)]
        command = [sys.executable, "-m", module, *arguments, *socket]
        options = {"capture_output": True, "timeout": LIMIT_S, "env": ENV, **options}
        done: subprocess.CompletedProcess[str] = subprocess.run(command, text=True, **options)
        return done


def _port_in(announced: str) -> int:
    found = re.search(r"http://[^/ ]+:(\d+)/", announced)
    assert found is not None, announced
    return int(found[1])


@contextmanager
def scripted_process(tmp_path: Path, **script: Any) -> Iterator[DaemonProcess]:
    """Ready when entered, stopped when left. `settings` in the script: further options of the daemon."""
    socket_path = tmp_path / "d.sock"
    model = model_folder(tmp_path / "model")
    command = [str(SUPPORT / "scripted_daemon.py"), str(model), str(socket_path), json.dumps(script)]
    with _ready(tmp_path, socket_path, command) as daemon:
        yield daemon


@contextmanager
def fake_process(tmp_path: Path, max_files: int | None = None) -> Iterator[DaemonProcess]:
    """The same with a real engine on the fake device. `max_files`: that may be open."""
    socket_path = tmp_path / "d.sock"
    command = ["-m", "semipd.commands.daemon", "start", "--device", "fake", "--port", "0"]
    command += ["--model", str(model_folder(tmp_path / "model")), "--socket", str(socket_path)]
    with _ready(tmp_path, socket_path, command, max_files) as daemon:
        yield daemon


@contextmanager
def _ready(
    tmp_path: Path, socket_path: Path, command: list[str], max_files: int | None = None
) -> Iterator[DaemonProcess]:
    limit = [] if max_files is None else ["sh", "-c", f'ulimit -n {max_files}; exec "$@"', "sh"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*limit, sys.executable, *command], stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENV
        )
    assert process.stdout is not None
    try:
        while "try:" not in (line := process.stdout.readline()):
            assert line, (tmp_path / "stderr").read_text()
        yield DaemonProcess(process, socket_path, _port_in(line))
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        process.stdout.close()
