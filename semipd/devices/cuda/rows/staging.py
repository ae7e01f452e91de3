"""Pinned host memory between host and device, lent to a step and given back when the step has settled."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semipd.core.sampling import MAX_LOGPROBS
from semipd.devices.cuda.rows.size import LaneSize

_SMALLEST = 256
"""Elements: below that, buffers of many sizes would only fragment the pool."""


_LARGER = 4
"""Sizes tried, each twice the one before: one that is free costs less than a new one."""

_LARGEST = 2**18
"""Elements: larger buffers are for vocabularies and prompts so long that pinning one is no longer felt."""

_SMALL = 2**12
_PER_LANE = 24
"""Buffers of each size: two steps in flight and one begun take up to seven each."""


def buffer_counts(size: LaneSize) -> dict[int, int]:
    """Buffers by length that a lane may have lent out at once. Small ones also carry the prompts of
    newcomers, of which one step can have as many as there are seats."""
    longest = max(
        size.max_tokens_per_seq + size.vocab_size, MAX_LOGPROBS * size.max_rows, 64 * size.max_num_seqs
    )
    lengths = [_SMALLEST << shift for shift in range(_LARGEST.bit_length()) if _SMALLEST << shift <= _LARGEST]
    return {
        length: _PER_LANE + (size.max_num_seqs if length <= _SMALL else 0)
        for length in lengths
        if length < 2 * longest
    }


class Staging:
    """int32 and float32 buffers by size. A buffer stays with its step: when the device reads or writes it the
    host knows only once the step's event is done."""

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._free: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
        self.num_bytes = 0
        self.num_late = 0

    def reserve(self, sizes: Iterable[LaneSize]) -> None:
        """Once, before serving: pinning memory takes the driver milliseconds, in which no lane is fed. What a
        step needs beyond this is allocated when it comes, and counted in `num_late`."""
        for size in sizes:
            counts = buffer_counts(size)
            for dtype in (torch.int32, torch.float32):
                slab = self._allocate(sum(length * count for length, count in counts.items()), dtype)
                lengths = [length for length, count in counts.items() for _ in range(count)]
                self.give_back(slab.split(lengths))
        self.num_late = 0

    def take(self, num_elements: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A whole buffer of at least `num_elements`; its content is undefined."""
        size = max(_SMALLEST, 1 << (num_elements - 1).bit_length())
        for length in (size << shift for shift in range(_LARGER)):
            if free := self._free[dtype, length]:
                return free.pop()
        return self._allocate(size, dtype)

    def _allocate(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        self.num_late += 1
        self.num_bytes += num_elements * dtype.itemsize
        return torch.empty(num_elements, dtype=dtype, pin_memory=self._pin)

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

    def add(self, values: Sequence[int] | np.ndarray[Any, np.dtype[np.integer[Any]]]) -> int:
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
