"""The tensors of a GGUF file, dequantised one at a time from the mapped file."""

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from semipd.checkpoints.gguf.header import GgufHeader
from semipd.checkpoints.gguf.names import by_their_names


class GgufTensors:
    """By the names of Hugging Face's checkpoints (names.py)."""

    def __init__(self, header: GgufHeader) -> None:
        self._tensors = {
            theirs: header.tensors[name] for theirs, name in by_their_names(header.tensors).items()
        }
        self._data = np.memmap(header.path, mode="r")

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def tensor(self, name: str) -> Tensor:
        """In float32, whatever the file has."""
        info = self._tensors[name]
        stored = self._data[info.offset_bytes : info.offset_bytes + info.num_bytes]
        rows = stored.reshape(*info.shape[:-1], -1) if info.shape else stored
        numbers = dequantize(rows, GGMLQuantizationType[info.kind.name])
        return torch.from_numpy(np.require(numbers, requirements=["C", "W"])).view(info.shape)
