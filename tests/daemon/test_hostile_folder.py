"""Started in a folder that holds modules of our names and of the standard library's, nothing of it runs.

For the workers of the CPU device see test_signals.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon_process import ENV, LIMIT_S, model_folder
from support.hostile import hostile_folder

from semipd.core.children import module_command, module_environment


def test_a_daemon_and_its_engine(tmp_path: Path) -> None:
    folder, socket = hostile_folder(tmp_path / "here"), tmp_path / "d.sock"
    at, model = ["--socket", str(socket)], str(model_folder(tmp_path / "model"))
    for arguments in (
        ["start", "--detach", "--port", "0", "--device", "fake", "--model", model, *at],
        ["stop", *at],
    ):
        # as the installed script is run: without the working directory
        command = [sys.executable, "-P", "-m", "semipd.cli", *arguments]
        done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
    assert not (folder / "ran").exists()


def test_the_parent_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "semipd" / "semipd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert runs("semipd.cli", "--version")


def test_children_run_the_semipd_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":relative:{tmp_path / 'absolute'}:.")
    entries = module_environment()["PYTHONPATH"].split(os.pathsep)
    assert entries[0] == str(tmp_path / "absolute")
    assert all(Path(entry).is_absolute() for entry in entries)
    assert "-P" in module_command("x")
    monkeypatch.delenv("PYTHONPATH")
    assert runs("semipd.cli", "--version"), "found without PYTHONPATH"


def runs(module: str, *arguments: str) -> bool:
    command = [*module_command(module), *arguments]
    done = subprocess.run(command, env=module_environment(), capture_output=True, timeout=LIMIT_S)
    return done.returncode == 0
