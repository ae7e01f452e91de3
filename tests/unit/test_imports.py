"""Borders at run time: the light commands stay light, the daemon never loads torch."""

import os
import subprocess
import sys

import pytest

REPORT = "; import sys; print(*sorted(sys.modules), sep='\\n')"


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that ran `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], capture_output=True, text=True, timeout=60, check=True
    )
    return {line.partition(".")[0] for line in done.stdout.splitlines()}


def helped(main: str) -> str:
    """Code that runs a command's --help and survives its exit."""
    return f"""
from {main} import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
pass"""


@pytest.mark.parametrize(
    "main", ["semipd.commands.daemon", "semipd.commands.client", "semipd.plan.command", "semipd_top.cli"]
)
def test_help_is_light(main: str) -> None:
    loaded = modules_after(helped(main))
    assert main.partition(".")[0] in loaded
    assert not loaded & {
        "torch",
        "numpy",
        "aiohttp",
        "pydantic",
        "textual",
        "tokenizers",
        "uvloop",
        "msgpack",
    }


@pytest.mark.parametrize("module", ["semipd.daemon.app", "semipd.client", "semipd.config.config"])
def test_the_daemons_side_never_loads_torch(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert "semipd" in loaded
    assert not loaded & {"torch", "safetensors", "transformers", "textual"}


def test_the_demo_is_light() -> None:
    loaded = modules_after("from semipd.sim.demo.world import DemoWorld; DemoWorld().advance(30.0)")
    assert not loaded & {"torch", "numpy", "aiohttp", "pydantic", "textual"}


@pytest.mark.parametrize("room", ["core", "memory", "sched", "partition", "engine.coordinator"])
def test_policy_is_pure(room: str) -> None:
    assert not modules_after(f"import semipd.{room}") & {"torch", "numpy", "asyncio"}


@pytest.mark.parametrize("name", ["kernels", "tui", "configs", "scripts", "tests"])
def test_folders_of_the_repository_are_no_packages(name: str) -> None:
    """A top-level module `kernels` would shadow the one that `transformers` looks for."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    find = f"find_spec('semipd') is None, find_spec({name!r}) is None"
    code = f"from importlib.util import find_spec; print({find})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd="/",
        env=environ,
    )
    not_installed, no_package = done.stdout.split()
    if not_installed == "True":
        pytest.skip("semipd is not installed in this environment")
    assert no_package == "True"
