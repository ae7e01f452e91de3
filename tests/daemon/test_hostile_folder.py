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

from semipd.system.children import module_command, module_environment


def test_a_daemon_and_its_engine(tmp_path: Path) -> None:
    folder, socket = hostile_folder(tmp_path / "here"), tmp_path / "d.sock"
    at, model = ["--socket", str(socket)], str(model_folder(tmp_path / "model"))
    for arguments in (
        ["start", "--detach", "--port", "0", "--device", "fake", "--model", model, *at],
        ["stop", *at],
    ):
        # as the installed script is run: without the working directory
        command = [sys.executable, "-P", "-m", "semipd.commands.daemon", *arguments]
        done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
    assert not (folder / "ran").exists()


def test_the_parent_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "semipd" / "semipd").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert runs("semipd.commands.daemon", "--version")


def test_children_run_the_semipd_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":relative:{tmp_path / 'absolute'}:.")
    entries = module_environment()["PYTHONPATH"].split(os.pathsep)
    assert entries[0] == str(tmp_path / "absolute")
    assert all(Path(entry).is_absolute() for entry in entries)
    assert "-P" in module_command("x")
    monkeypatch.delenv("PYTHONPATH")
    assert runs("semipd.commands.daemon", "--version"), "found without PYTHONPATH"


@pytest.mark.parametrize("entry", ["", "."])
@pytest.mark.parametrize("name", ["daemon", "client", "top"])
def test_the_commands_with_a_relative_entry_in_the_search_path(tmp_path: Path, name: str, entry: str) -> None:
    """By the time the commands run, Python has imported what it starts with."""
    root = Path(ENV["PYTHONPATH"])
    started_with = subprocess.check_output(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], text=True
    )
    ours = {"argparse", "asyncio", "json", "msgpack", "signal", "numpy", "uvloop", "pathlib", "enum"}
    for module in ours - set(started_with.split()):
        (tmp_path / f"{module}.py").write_text("open('ran', 'a').write(__name__)")
    script = tmp_path / "bin" / "command"
    script.parent.mkdir()
    script.write_text(f"from semipd.command_line.entry import {name}; raise SystemExit({name}())")
    env = ENV | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tui"), entry])}
    command = [sys.executable, str(script), "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"semipd-{name} ")
    assert not (tmp_path / "ran").exists()


def runs(module: str, *arguments: str) -> bool:
    command = [*module_command(module), *arguments]
    done = subprocess.run(command, env=module_environment(), capture_output=True, timeout=LIMIT_S)
    return done.returncode == 0
