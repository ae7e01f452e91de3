"""Step times that survive a restart: one file per device, model, data type and software beneath it."""

import hashlib
import json
import logging
import os
import platform
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from semipd import __version__
from semipd.core.settings import EngineSettings
from semipd.devices.contract import DeviceInfo
from semipd.partition.step_times.models import Models
from semipd.system.safe_files import make_folder, open_safely

SAVE_EVERY_S = 60.0
FORMAT = 1
MAX_FILE_BYTES = 2**24
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

log = logging.getLogger(__name__)


class SavedTimes:
    """The file of one engine. `path` is None for the device `fake`, whose times mean nothing, unless
    partition.state_dir is set."""

    def __init__(self, settings: EngineSettings, info: DeviceInfo) -> None:
        self._key = state_key(settings, info)
        self.path: Path | None = None
        if settings.state_dir or info.kind != "fake":
            digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:16]
            self.path = state_dir(settings) / f"step-times-{info.kind}-{digest}.json"
        self._num_saved = 0

    def load(self, models: Models) -> str:
        """Fill `models` from the file. Returns a sentence for the log; a file that cannot be used is left
        alone, its reason is in the sentence, and `models` is as it was."""
        if self.path is None:
            return ""
        try:
            data = json.loads(_read(self.path))
            if data["format"] != FORMAT or data["key"] != self._key:
                return f"{self.path} belongs to another release or machine; step times are learned anew"
            models.load_plain(data["phases"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"{self.path} is unusable ({error!r:.200}); step times are learned anew"
        self._num_saved = models.num_steps
        return f"step times of {models.num_steps} earlier steps loaded from {self.path}"

    def save(self, models: Models) -> None:
        """Replace the file in one go, if something was learned; a failure is logged."""
        if self.path is None or models.num_steps == self._num_saved:
            return
        data = {"format": FORMAT, "key": self._key, "phases": models.to_plain()}
        try:
            _write(self.path, json.dumps(data))
        except OSError as error:
            log.warning("step times cannot be saved to %s: %s", self.path, error.strerror)
        self._num_saved = models.num_steps


def _read(path: Path) -> bytes:
    with os.fdopen(open_safely(path, os.O_RDONLY), "rb") as file:
        return file.read(MAX_FILE_BYTES)


def _write(path: Path, text: str) -> None:
    """In one go, under a name of its own until then: nobody can have put a link there. Raises OSError."""
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(".partial", f"{path.stem}.", path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except OSError:
        with suppress(OSError):
            Path(name).unlink()
        raise


def state_dir(settings: EngineSettings) -> Path:
    """partition.state_dir, else semipd in the state folder of the XDG base directory specification."""
    if settings.state_dir:
        return Path(os.path.expanduser(settings.state_dir))  # noqa: PTH111 (Path's raises for an unknown user)
    home = os.environ.get("XDG_STATE_HOME", "")
    if not home.startswith("/"):  # the specification says to ignore relative paths
        home = os.path.expanduser("~/.local/state")  # noqa: PTH111
    return Path(home) / "semipd"


def state_key(settings: EngineSettings, info: DeviceInfo) -> dict[str, Any]:
    """What step times depend on. `release` stands for our kernels."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return {
        "device": info.name,
        "num_units": info.num_units,
        "profile": settings.sim_profile,
        "model": [settings.model_name, settings.model_dir],
        "dtype": info.dtype,
        "release": __version__,
        "torch": torch,
        "kernel": platform.release(),
        "driver": _NVIDIA_DRIVER.read_text().splitlines()[0] if _NVIDIA_DRIVER.is_file() else "",
    }
