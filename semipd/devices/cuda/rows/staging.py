"""Pinned host memory between host and device, lent to a step and given back when the step has settled."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 256
"""Elements: below that, buffers of many sizes would only fragment the pool."""


class Staging:
    """int32 and float32 buffers by size. A buffer stays with its step: when the device reads or writes it the
    host knows only once the step's event is done."""

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._free: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
        self.num_bytes = 0

    def take(self, num_elements: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A whole buffer of at least `num_elements`; its content is undefined."""
        size = max(_SMALLEST, 1 << (num_elements - 1).bit_length())
        free = self._free[dtype, size]
        if free:
            return free.pop()
        self.num_bytes += size * dtype.itemsize
        return torch.empty(size, dtype=dtype, pin_memory=self._pin)

    def give_back(self, buffers: Sequence[Tensor]) -> None:
        """The steps that used them have settled."""
        for buffer in buffers:
            self._free[buffer.dtype, buffer.numel()].append(buffer)


class Packer:
    """Lays int32 vectors end to end, so that a step's metadata crosses in one copy. Each starts at a multiple
    of 4 elements: kernels like pointers aligned to 16 bytes."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
        self._places: list[tuple[int, int]] = []
        self.size = 0

    def add(self, values: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
        """The vector's number, for `views`."""
        part = np.asarray(values, dtype=np.int32)
        self._parts.append(part)
        self._places.append((self.size, part.size))
        self.size += -(-part.size // 4) * 4
        return len(self._places) - 1

    def write(self, buffer: Tensor) -> None:
        """Into `buffer`, int32 on the host, of at least `size` elements."""
        target = buffer.numpy()
        for (start, length), part in zip(self._places, self._parts, strict=True):
            target[start : start + length] = part

    def views(self, memory: Tensor) -> Callable[[int], Tensor]:
        """The vectors by number, in `memory`, to which the first `size` elements of the buffer go."""

        def view(number: int) -> Tensor:
            start, length = self._places[number]
            return memory[start : start + length]

        return view
