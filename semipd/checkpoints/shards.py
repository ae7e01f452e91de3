"""Which safetensors files make up a checkpoint, and whether they are whole. No torch here."""

import errno
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from semipd.checkpoints.gguf.config_json import is_gguf
from semipd.checkpoints.gguf.header import GgufHeader
from semipd.core.brief import brief
from semipd.core.errors import SemipdError
from semipd.system.json_file import read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEAD_BYTES = 100_000_000
"""As the safetensors library has it."""

_LENGTH_BYTES = 8
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_MAX_SHOWN = 80
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Shards:
    """`files` in name order; `expected`: the tensors that the index promises in each, {} without an index."""

    files: tuple[Path, ...]
    expected: dict[Path, frozenset[str]]


def find_shards(model_dir: Path) -> Shards:
    """`model.safetensors`, the files named by `model.safetensors.index.json`, or one file of GGUF.

    Raises:
        SemipdError: `model_not_found` when there is neither; `checkpoint_corrupt` when the index is malformed
            or names a file that is not there.
    """
    if is_gguf(model_dir):
        return Shards((model_dir,), {})
    single, index = model_dir / SINGLE, model_dir / INDEX
    if single.is_file():
        return Shards((single,), {})
    if not index.is_file():
        raise _no_weights(model_dir)
    expected: dict[Path, set[str]] = {}
    for tensor, file in _weight_map(index).items():
        expected.setdefault(model_dir / file, set()).add(tensor)
    missing = sorted(path.name for path in expected if not _is_file(path))
    if missing:
        shown = ", ".join(map(_shown, missing[:5]))
        raise SemipdError(
            "checkpoint_corrupt",
            f"{index} names {len(expected)} files, {len(missing)} are missing: {shown}.",
            "Download the checkpoint again.",
        )
    return Shards(tuple(sorted(expected)), {path: frozenset(names) for path, names in expected.items()})


def _shown(name: str) -> str:
    """As it is, unless a terminal cannot show it."""
    return name if name.isprintable() and len(name) <= _MAX_SHOWN else brief(name)


def _is_file(path: Path) -> bool:
    """False for names too long for any file. Raises SemipdError(`checkpoint_corrupt`) when it cannot tell."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise SemipdError(
            "checkpoint_corrupt",
            f"{path.parent / INDEX} names {brief(path.name)}, which cannot be opened: {error.strerror}.",
            "Check the folder's permissions, or download the checkpoint again.",
        ) from error


def check_weight_files(model_dir: Path) -> None:
    """That every file is there and as long as its head says; no tensor is read. Raises SemipdError: as
    `find_shards`, and `checkpoint_corrupt` with the names of the files."""
    if is_gguf(model_dir):
        GgufHeader.read(model_dir)
        return
    wrong = [f"{path.name} {what}" for path in find_shards(model_dir).files if (what := _fault(path))]
    if wrong:
        raise SemipdError(
            "checkpoint_corrupt",
            f"{model_dir}: {', '.join(wrong[:5])}" + (f" and {len(wrong) - 5} more." if wrong[5:] else "."),
            "Download the checkpoint again; of a clone of git, fetch its large files with `git lfs pull`.",
        )


def _fault(path: Path) -> str:
    """What is wrong with a safetensors file: the length of a JSON object, the object, then the tensors."""
    try:
        with path.open("rb") as file:
            num_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                return "is a pointer of git-lfs, not the file itself"
            head_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if num_bytes < _LENGTH_BYTES or head_bytes > min(num_bytes - _LENGTH_BYTES, MAX_HEAD_BYTES):
                return "is empty" if num_bytes == 0 else f"has {num_bytes} bytes and no whole head"
            file.seek(_LENGTH_BYTES)
            end_bytes = _LENGTH_BYTES + head_bytes + _data_bytes(file.read(head_bytes))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "has no head of safetensors"
    return "" if num_bytes == end_bytes else f"has {num_bytes} bytes instead of {end_bytes}"


def usual_dtype(model_dir: Path) -> str:
    """Of most numbers in the first file of safetensors, as torch calls it; empty where none can be read."""
    paths = sorted(model_dir.glob("*.safetensors"))
    try:
        with paths[0].open("rb") as file:
            head_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            tensors = json.loads(file.read(min(head_bytes, MAX_HEAD_BYTES)))
        sizes: Counter[str] = Counter()
        for name, about in tensors.items():
            if name != "__metadata__":
                sizes[str(about["dtype"])] += math.prod(about["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return ""  # whoever reads the tensors says what is wrong
    return _TORCH_NAMES.get(sizes.most_common(1)[0][0], "") if sizes else ""


def _data_bytes(head: bytes) -> int:
    tensors = json.loads(head)
    return max(
        (int(about["data_offsets"][1]) for name, about in tensors.items() if name != "__metadata__"),
        default=0,
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json_object(index)["weight_map"]
        files = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise SemipdError(
            "checkpoint_corrupt",
            f"{index} is not a safetensors index: {error!r}.",
            "Download the file again.",
        ) from error
    outside = [file for file in files.values() if Path(file).name != file or file in ("", "..")]
    if outside or not files:
        what = f"names the file {brief(outside[0])} outside its folder" if outside else "names no tensors"
        raise SemipdError("checkpoint_corrupt", f"{index} {what}.", "Download the file again.")
    return files


def _no_weights(model_dir: Path) -> SemipdError:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if pickles:
        return SemipdError(
            "model_not_found",
            f"{model_dir} has no {SINGLE}, only pickles ({', '.join(pickles[:3])}). Pickles can run code and "
            "are not read.",
            "Use a release in safetensors, or convert it: load it with transformers and save_pretrained().",
        )
    return SemipdError(
        "model_not_found",
        f"{model_dir} has neither {SINGLE} nor {INDEX}.",
        "Point `model` at a folder with config.json and safetensors files.",
        param="model",
    )
