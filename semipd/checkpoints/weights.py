"""A checkpoint's tensors to the packed buffer, one at a time, straight from the mapped file."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semipd.checkpoints.gguf.config_json import is_gguf
from semipd.checkpoints.gguf.header import GgufHeader
from semipd.checkpoints.layout import WeightsLayout
from semipd.checkpoints.quantization import QUANTIZED_TENSORS
from semipd.checkpoints.shards import find_shards
from semipd.core.errors import SemipdError
from semipd.network.config import DTypeName, ModelConfig
from semipd.network.params import TensorSource, is_harmless, model_params

TORCH_DTYPES: dict[DTypeName, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_DOWNLOAD = "Download the checkpoint again."


def load_weights(
    model_dir: str | Path,
    config: ModelConfig,
    layout: WeightsLayout,
    buffer: Tensor,
    progress: Callable[[int, int], None],
) -> None:
    """Fill `buffer` ([layout.total_bytes] uint8) from the checkpoint in `model_dir`, a folder or a
    file of GGUF, cast to layout.dtype.

    Files are mapped: beside `buffer` there is no second copy of the model in private memory.

    Args:
        progress: called after each tensor with (bytes done, bytes in all), counted in layout.dtype.

    Raises:
        SemipdError: `model_not_found` when there are no safetensors files; `checkpoint_corrupt` when a file
            is damaged or missing, or a tensor is missing, unexpected or of another shape;
            `unsupported_model` for tensors that are not float32, bfloat16 or float16.
    """
    shards = find_shards(Path(model_dir))
    wanted = _wanted(config, weight_views(layout, buffer))
    item_bytes = TORCH_DTYPES[layout.dtype].itemsize
    total_bytes = item_bytes * sum(math.prod(parts[0].source.shape) for parts in wanted.values())
    done_bytes = 0
    for path in shards.files:
        expected = shards.expected.get(path, frozenset())
        for name, tensor in _read_file(path, config, wanted, expected):
            for part in wanted.pop(name):
                part.fill(tensor)
            done_bytes += item_bytes * tensor.numel()
            progress(done_bytes, total_bytes)
    if wanted:
        raise _corrupt(Path(model_dir), f"{len(wanted)} tensors are missing, e.g. {_some(wanted)}")


class _Part(NamedTuple):
    """Where rows of a tensor go."""

    source: TensorSource
    target: Tensor

    def fill(self, tensor: Tensor) -> None:
        rows, columns = self.source.rows, self.source.columns
        if tensor.dim() < self.target.dim():
            tensor = tensor[None]
        tensor = tensor[rows.start : rows.stop] if isinstance(rows, range) else tensor[list(rows)]
        self.target.copy_(tensor if columns is None else tensor[:, columns[0] : columns[-1] + 1])


def _wanted(config: ModelConfig, views: dict[str, Tensor]) -> dict[str, list[_Part]]:
    """By the checkpoint's names: every tensor it must hold."""
    wanted: dict[str, list[_Part]] = {}
    for param in model_params(config, packed="lm_head" in views):
        lengths = [len(source.rows) for source in param.sources]
        targets = torch.split(views[param.name], lengths)
        for source, target in zip(param.sources, targets, strict=True):
            wanted.setdefault(source.tensor, []).append(_Part(source, target))
    return wanted


def weight_views(layout: WeightsLayout, buffer: Tensor) -> dict[str, Tensor]:
    """Every weight as a view of `buffer` ([layout.total_bytes] uint8, on any device), by layout name."""
    assert buffer.dtype == torch.uint8, buffer.dtype
    assert buffer.numel() == layout.total_bytes, (buffer.numel(), layout.total_bytes)
    return {
        spec.name: buffer.narrow(0, spec.offset_bytes, spec.num_bytes)
        .view(TORCH_DTYPES[spec.dtype])
        .view(spec.shape)
        for spec in layout.tensors
    }


class TensorFile(Protocol):
    """A file of tensors by name."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor:
        """Valid until the next is asked for. Raises SemipdError(`unsupported_model`) where its numbers are
        not read."""


class _Safetensors:
    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file

    def names(self) -> set[str]:
        return set(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        dtype = self._file.get_slice(name).get_dtype()
        if dtype not in ("F32", "BF16", "F16"):
            raise SemipdError(
                "unsupported_model",
                f"{self._path}: tensor {name} is {dtype}.",
                "Use a bfloat16, float16 or float32 release of the checkpoint.",
            )
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    if is_gguf(path):
        # numpy and a library that other checkpoints do not need
        from semipd.checkpoints.gguf.tensors import GgufTensors

        yield GgufTensors(GgufHeader.read(path))
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield _Safetensors(path, file)
    except (SafetensorError, OSError) as error:
        raise SemipdError("checkpoint_corrupt", f"{path} cannot be read: {error}.", _DOWNLOAD) from error


def _read_file(
    path: Path, config: ModelConfig, wanted: dict[str, list[_Part]], expected: frozenset[str]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file, each valid until the next is asked for."""
    with _opened(path) as file:
        names = file.names()
        if expected - names:
            raise _corrupt(
                path, f"the index promises {_some(expected - names)}, which the file does not hold"
            )
        unknown = {name for name in names - wanted.keys() if not is_harmless(name, config)}
        if quantized := sorted(name for name in unknown if name.endswith(QUANTIZED_TENSORS)):
            raise SemipdError(
                "unsupported_model",
                f"{path} holds quantized weights, e.g. {quantized[0]}.",
                "Use the checkpoint's unquantized (bfloat16, float16 or float32) release.",
            )
        if unknown:
            raise _corrupt(
                path, f"{len(unknown)} tensors fit no {config.family} model, e.g. {_some(unknown)}"
            )
        for name in sorted(names & wanted.keys()):
            _check_shape(path, file.shape(name), wanted[name][0].source)
            yield name, file.tensor(name)


def _check_shape(path: Path, shape: tuple[int, ...], source: TensorSource) -> None:
    if shape != source.shape:
        raise _corrupt(
            path, f"tensor {source.tensor} has shape {list(shape)}, config.json needs {list(source.shape)}"
        )


def _corrupt(path: Path, what: str) -> SemipdError:
    return SemipdError("checkpoint_corrupt", f"{path}: {what}.", _DOWNLOAD)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
