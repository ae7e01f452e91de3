"""Step times across restarts: loaded warm, never trusted when they belong elsewhere or are spoilt."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semipd.config.config import default_engine_settings
from semipd.core.settings import EngineSettings
from semipd.devices.fake import FakeDevice
from semipd.engine.coordinator import Coordinator
from semipd.engine.saved_times import SavedTimes, state_dir
from semipd.partition.interface import StepRecord
from semipd.partition.step_times.models import Models

INFO = FakeDevice().info


def settings(folder: Path, **kwargs: Any) -> EngineSettings:
    return default_engine_settings(device="fake", state_dir=str(folder), **kwargs)


def taught() -> Models:
    models = Models(16)
    for step in range(100):
        models.record(StepRecord("decode", 4 + step % 9, 0, 1 + step % 5, 100, 0, 0, 3_000_000), 0)
        models.record(StepRecord("prefill", 4 + step % 9, 0, 0, 0, 10 + step, 50.0, 2_000_000), 0)
    models.fit()
    return models


def saved(folder: Path) -> SavedTimes:
    saving = SavedTimes(settings(folder), INFO)
    saving.save(taught())
    return saving


def test_a_restart_starts_warm(tmp_path: Path) -> None:
    saved(tmp_path)
    models = Models(16)
    note = SavedTimes(settings(tmp_path), INFO).load(models)
    assert "loaded" in note
    assert models.confident
    assert models.decode(6).ms(3, 100) == pytest.approx(3.0, rel=0.02)
    coordinator = Coordinator(FakeDevice(), settings(tmp_path), models)
    assert coordinator.control.models.confident


def test_nothing_saved_yet_is_no_news(tmp_path: Path) -> None:
    assert SavedTimes(settings(tmp_path), INFO).load(Models(16)) == ""


@pytest.mark.parametrize(
    "other",
    [
        {"info": replace(INFO, dtype="bfloat16")},
        {"info": replace(INFO, name="another device")},
        {"settings": {"model_name": "another"}},
        {"settings": {"sim_profile": "measured.json"}},
    ],
)
def test_another_device_model_or_type_has_its_own_file(tmp_path: Path, other: dict[str, Any]) -> None:
    path = saved(tmp_path).path
    elsewhere = SavedTimes(settings(tmp_path, **other.get("settings", {})), other.get("info", INFO))
    assert elsewhere.path != path
    models = Models(16)
    assert elsewhere.load(models) == ""
    assert not models.confident


def spoil(path: Path, how: str) -> None:
    match how:
        case "cut short":
            path.write_text(path.read_text()[:-50])
        case "empty":
            path.write_text("")
        case "not text":
            path.write_bytes(b"\xff\xfe\x00")
        case "another shape":
            path.write_text("[1, 2]")
        case "a number spoilt":
            data = json.loads(path.read_text())
            data["phases"]["decode"][0][4] = "much"
            path.write_text(json.dumps(data))
        case "another release":
            data = json.loads(path.read_text())
            data["key"]["release"] = "0.0.0"
            path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "how", ["cut short", "empty", "not text", "another shape", "a number spoilt", "another release"]
)
def test_a_file_that_cannot_be_used_is_ignored_with_its_reason(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path).path
    assert path is not None
    spoil(path, how)
    models = Models(16)
    saving = SavedTimes(settings(tmp_path), INFO)
    note = saving.load(models)
    assert "learned anew" in note
    assert str(path) in note
    assert models.num_steps == 0
    saving.save(taught())
    assert SavedTimes(settings(tmp_path), INFO).load(Models(16)).startswith("step times of"), "replaced"


@pytest.mark.parametrize("what", ["link", "pipe", "deep"])
def test_something_planted_in_its_place(tmp_path: Path, what: str) -> None:
    """It is neither read nor written through, and the next file takes its place."""
    victim, folder = tmp_path / "victim", tmp_path / "state"
    path = saved(folder).path
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0
    victim.write_bytes(path.read_bytes())
    path.unlink()
    match what:
        case "link":
            path.symlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case "deep":
            path.write_text("[" * 100_000)
    before, models = victim.read_bytes(), Models(16)
    assert "learned anew" in SavedTimes(settings(folder), INFO).load(models)
    assert models.num_steps == 0
    saved(folder)
    assert "loaded" in SavedTimes(settings(folder), INFO).load(models)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert victim.read_bytes() == before


def test_saving_leaves_one_file_and_only_when_something_was_learned(tmp_path: Path) -> None:
    saving, models = SavedTimes(settings(tmp_path), INFO), taught()
    saving.save(Models(16))
    assert list(tmp_path.iterdir()) == []
    saving.save(models)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    saving.save(models)
    assert path.stat().st_mtime_ns == before
    assert path == saving.path


def test_a_folder_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    SavedTimes(settings(tmp_path / "file"), INFO).save(taught())
    assert "cannot be saved" in caplog.text


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir(default_engine_settings()) == tmp_path / "semipd"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/x")
    assert state_dir(default_engine_settings()) == Path("/home/x/.local/state/semipd")
    assert SavedTimes(default_engine_settings(device="fake"), INFO).path is None, "made-up times are not kept"
