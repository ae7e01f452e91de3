"""The head of a GGUF file: metadata, and where each tensor lies. No torch here.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The
library `gguf` reads the same, but takes two seconds for a vocabulary of 50,000, which daemon, engine and
workers would each spend, and does not check what a damaged file says. Dequantisation is the library's.
"""

import math
import mmap
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semipd.core.errors import SemipdError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_TENSORS = 2**20
MAX_KEYS = 2**16

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values, as `struct` names them."""


class TensorKind(NamedTuple):
    """How numbers are stored: blocks of `block` of them in `block_bytes`."""

    name: str
    block: int
    block_bytes: int


KINDS = {
    0: TensorKind("F32", 1, 4),
    1: TensorKind("F16", 1, 2),
    2: TensorKind("Q4_0", 32, 18),
    3: TensorKind("Q4_1", 32, 20),
    6: TensorKind("Q5_0", 32, 22),
    7: TensorKind("Q5_1", 32, 24),
    8: TensorKind("Q8_0", 32, 34),
    12: TensorKind("Q4_K", 256, 144),
    13: TensorKind("Q5_K", 256, 176),
    14: TensorKind("Q6_K", 256, 210),
    30: TensorKind("BF16", 1, 2),
}
"""What is read, by the number in the file."""

_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "Download the file again."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape`: as PyTorch has it, rows first. `offset_bytes`: in the file."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    offset_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.kind.block * self.kind.block_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`metadata`: by key; arrays are lists or `array.array`s. `tensors`: by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @classmethod
    def read(cls, path: Path) -> "GgufHeader":
        """Raises SemipdError: `checkpoint_corrupt`, also when a tensor lies outside the file;
        `unsupported_model` for a type of tensor that is not read."""
        try:
            with path.open("rb") as file, _mapped(file.fileno()) as data:
                return _Reader(path, data).header()
        except OSError as error:
            why = error.strerror or error
            raise SemipdError(
                "checkpoint_corrupt", f"{path} cannot be read: {why}.", "Check it and its permissions."
            ) from error
        except ValueError as error:
            raise SemipdError("checkpoint_corrupt", f"{path} {error}.", _AGAIN) from error

    def floats(self, tensor: str) -> list[float]:
        """Of a small tensor of 32-bit floats. Raises SemipdError(`checkpoint_corrupt`)."""
        info = self.tensors[tensor]
        if info.kind.name != "F32":
            raise SemipdError("checkpoint_corrupt", f"{self.path}: {tensor} is {info.kind.name}.", _AGAIN)
        with self.path.open("rb") as file:
            file.seek(info.offset_bytes)
            return list(struct.unpack(f"<{math.prod(info.shape)}f", file.read(info.num_bytes)))


def _mapped(descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise ValueError("is empty") from error


class _Reader:
    """Reads forward through the file. Raises ValueError, the end of a sentence that begins with its path."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def header(self) -> GgufHeader:
        num_tensors, num_keys = self._start()
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise ValueError(f"says {key!r:.100} twice")
            metadata[key] = self._value(self._scalar("I"))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment % 8:
            raise ValueError(f"has the alignment {alignment!r:.100}, not a multiple of 8")
        infos = [self._tensor() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        return GgufHeader(self._path, metadata, self._placed(infos, start))

    def _start(self) -> tuple[int, int]:
        """(tensors, keys)."""
        if self._data[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise ValueError("is a pointer of git-lfs, not the file itself")
        if self._take(4) != MAGIC:
            raise ValueError("is no GGUF file: it does not begin with GGUF")
        version = self._scalar("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "is big-endian" if swapped in VERSIONS else f"has version {version} of GGUF"
            raise ValueError(f"{what}; little-endian files of versions 2 and 3 are read")
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            raise ValueError(f"claims to have {num_tensors} tensors and {num_keys} keys")
        return num_tensors, num_keys

    def _tensor(self) -> TensorInfo:
        name, num_dims = self._string(), self._scalar("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"has a tensor {name!r:.100} of {num_dims} dimensions")
        # the fastest one first
        shape = tuple(self._scalar("Q") for _ in range(num_dims))[::-1]
        number, offset_bytes = self._scalar("I"), self._scalar("Q")
        if number not in KINDS:
            raise SemipdError(
                "unsupported_model",
                f"{self._path}: tensor {name:.100} has the type {number} of GGUF.",
                f"Use a file of {', '.join(kind.name for kind in KINDS.values())}.",
            )
        kind = KINDS[number]
        if math.prod(shape[-1:]) % kind.block:
            raise ValueError(
                f"has a tensor {name!r:.100} whose rows of {shape[-1]} are no {kind.name} blocks"
            )
        return TensorInfo(name, shape, kind, offset_bytes)

    def _placed(self, infos: list[TensorInfo], start: int) -> dict[str, TensorInfo]:
        """With offsets in the file, which must hold all of them."""
        placed: dict[str, TensorInfo] = {}
        end = 0
        for info in infos:
            if info.name in placed:
                raise ValueError(f"has two tensors {info.name!r:.100}")
            placed[info.name] = TensorInfo(info.name, info.shape, info.kind, start + info.offset_bytes)
            end = max(end, start + info.offset_bytes + info.num_bytes)
        if end > len(self._data):
            raise ValueError(f"has {len(self._data)} bytes instead of {end}")
        return placed

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"has a value of the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> "list[str] | list[bool] | array[Any]":
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _STRING:
            if count * 8 > len(self._data) - self._at:
                raise self._ended()
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"has an array of the type {kind}, which is not read")
        code = _SCALARS[kind]
        data = self._take(count * struct.calcsize(f"<{code}"))
        if code == "?":
            return list(map(bool, data))
        return array(code, data)

    def _string(self) -> str:
        data = self._take(self._scalar("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"has a text that is not UTF-8: {data!r:.100}") from error

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _take(self, num_bytes: int) -> bytes:
        end = self._at + num_bytes
        if end > len(self._data):
            raise self._ended()
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _ended(self) -> ValueError:
        return ValueError(f"ends after {len(self._data)} bytes, within its head")
