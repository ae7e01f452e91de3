"""Safetensors to the packed buffer, one tensor at a time, straight from the mapped file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semipd.checkpoints.config import ModelConfig
from semipd.checkpoints.dtypes import DTypeName
from semipd.checkpoints.layout import WeightsLayout
from semipd.checkpoints.shards import find_shards
from semipd.checkpoints.sources import Source, checkpoint_sources, is_harmless
from semipd.core.errors import SemipdError

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
    """Fill `buffer` ([layout.total_bytes] uint8) from the checkpoint in `model_dir`, cast to layout.dtype.

    Files are mapped: beside `buffer` there is no second copy of the model in private memory.

    Args:
        progress: called after each tensor with (bytes done, bytes in all), counted in layout.dtype.

    Raises:
        SemipdError: `model_not_found` when there are no safetensors files; `checkpoint_corrupt` when a file
            is damaged or missing, or a tensor is missing, unexpected or of another shape;
            `unsupported_model` for tensors that are not float32, bfloat16 or float16.
    """
    shards = find_shards(Path(model_dir))
    wanted = {source.name: source for source in checkpoint_sources(config)}
    item_bytes = TORCH_DTYPES[layout.dtype].itemsize
    total_bytes = item_bytes * sum(source.num_elements for source in wanted.values())
    views = weight_views(layout, buffer)
    done_bytes = 0
    for path in shards.files:
        for source, tensor in _read_file(path, config, wanted, shards.expected.get(path, frozenset())):
            views[source.target].narrow(0, source.row, source.shape[0]).copy_(tensor)
            del wanted[source.name]
            done_bytes += item_bytes * source.num_elements
            progress(done_bytes, total_bytes)
    if wanted:
        raise _corrupt(Path(model_dir), f"{len(wanted)} tensors are missing, e.g. {_some(wanted)}")
    if config.tie_word_embeddings and "lm_head" in views:
        views["lm_head"].copy_(views["embed"])


def weight_views(layout: WeightsLayout, buffer: Tensor) -> dict[str, Tensor]:
    """Every weight as a view of `buffer` ([layout.total_bytes] uint8, on any device), by layout name."""
    assert buffer.dtype == torch.uint8, buffer.dtype
    assert buffer.numel() == layout.total_bytes, (buffer.numel(), layout.total_bytes)
    dtype = TORCH_DTYPES[layout.dtype]
    views: dict[str, Tensor] = {}
    for spec in layout.tensors:
        num_bytes = torch.Size(spec.shape).numel() * dtype.itemsize
        views[spec.name] = buffer.narrow(0, spec.offset_bytes, num_bytes).view(dtype).view(spec.shape)
    return views


def _read_file(
    path: Path, config: ModelConfig, wanted: dict[str, Source], expected: frozenset[str]
) -> Iterator[tuple[Source, Tensor]]:
    """The tensors of one file, each valid until the next is asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if expected - names:
                raise _corrupt(
                    path, f"the index promises {_some(expected - names)}, which the file does not hold"
                )
            unknown = {name for name in names - wanted.keys() if not is_harmless(name, config)}
            if unknown:
                raise _corrupt(
                    path, f"{len(unknown)} tensors fit no {config.family} model, e.g. {_some(unknown)}"
                )
            for name in sorted(names & wanted.keys()):
                _check_tensor(path, file.get_slice(name), wanted[name])
                yield wanted[name], file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise SemipdError("checkpoint_corrupt", f"{path} cannot be read: {error}.", _DOWNLOAD) from error


def _check_tensor(path: Path, header: Any, source: Source) -> None:
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != source.shape:
        raise _corrupt(
            path, f"tensor {source.name} has shape {list(shape)}, config.json needs {list(source.shape)}"
        )
    if dtype not in ("F32", "BF16", "F16"):
        raise SemipdError(
            "unsupported_model",
            f"{path}: tensor {source.name} is {dtype}.",
            "Use a bfloat16, float16 or float32 release of the checkpoint.",
        )


def _corrupt(path: Path, what: str) -> SemipdError:
    return SemipdError("checkpoint_corrupt", f"{path}: {what}.", _DOWNLOAD)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3])
