"""The memory of a pass."""

from dataclasses import dataclass

from torch import Tensor

from semipd.network.config import ModelConfig


@dataclass(slots=True)
class Activations:
    """Of a pass of up to `max_rows` rows. `first` gives views of the leading rows; where an operation returns
    memory of its own, a pass puts that in the place of the view.

    `hidden` is the residual stream, `branch` what the last sublayer adds to it, not yet added.
    """

    hidden: Tensor
    normed: Tensor
    branch: Tensor
    qkv: Tensor
    attended: Tensor
    gate_up: Tensor
    activated: Tensor

    @classmethod
    def reserve(cls, config: ModelConfig, max_rows: int, like: Tensor) -> "Activations":
        return cls(*(like.new_empty(max_rows, width) for width in _widths(config)))

    def first(self, num_rows: int) -> "Activations":
        return Activations(*(getattr(self, name)[:num_rows] for name in self.__slots__))

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.__slots__)


def row_elements(config: ModelConfig) -> int:
    """Of all activations together, for one row."""
    return sum(_widths(config))


def _widths(config: ModelConfig) -> tuple[int, ...]:
    """In the order of the fields of Activations."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return (hidden, hidden, hidden, config.qkv_width, config.q_width, 2 * inner, inner)
