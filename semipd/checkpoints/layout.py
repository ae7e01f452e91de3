"""Where each weight lies in one flat buffer. No torch here."""

import math
from dataclasses import dataclass

from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig
from semipd.network.params import model_params

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Of a Param; `packable`: see there."""

    name: str
    shape: tuple[int, ...]
    offset_bytes: int
    dtype: DTypeName
    packable: bool = False

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class WeightsLayout:
    """`tensors` by rising offset, each aligned to 64 bytes; `dtype`: of those that have none of their own."""

    dtype: DTypeName
    tensors: tuple[TensorSpec, ...]
    total_bytes: int


def plan_weights(config: ModelConfig, dtype: DTypeName, *, packed: bool = False) -> WeightsLayout:
    """Of network.params.model_params, under their names."""
    tensors: list[TensorSpec] = []
    offset = 0
    for param in model_params(config, packed=packed):
        spec = TensorSpec(param.name, param.shape, offset, param.dtype or dtype, param.packable)
        tensors.append(spec)
        offset += -(-spec.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return WeightsLayout(dtype, tuple(tensors), offset)
