"""How much memory a piece of torch code has for itself at once.

with Temporaries() as memory:
    (logits.log_softmax(-1) >= logits).sum(-1)
assert memory.peak_bytes == 2 * logits.nbytes + ...
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Temporaries(TorchDispatchMode):
    """Counts the storages that operations make, from then until nothing refers to them; in its thread. What
    an operation allocates within itself and gives back is not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._bytes = 0
        self._users: dict[int, int] = {}  # tensors by storage, of those that were made here

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (_address(leaf) in self._users or _address(leaf) not in given):
                self._use(leaf)
        return made

    def _use(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if address not in self._users:
            self._users[address] = 0
            self._bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self._bytes)
        self._users[address] += 1
        weakref.finalize(tensor, self._drop, address, num_bytes)

    def _drop(self, address: int, num_bytes: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            del self._users[address]
            self._bytes -= num_bytes


def _address(tensor: Tensor) -> int:
    return torch.Tensor.untyped_storage(tensor).data_ptr()
