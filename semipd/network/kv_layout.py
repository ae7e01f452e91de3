"""The shape of the KV pool. No torch here."""

import math
from dataclasses import dataclass

from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig

BLOCK_SIZE = 16
"""Tokens per KV block, on the CPU and on CUDA."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What each layer keeps of a token: `planes` (keys, values) of `heads` rows of `width` elements."""

    num_layers: int
    planes: int
    heads: int
    width: int

    @classmethod
    def of(cls, config: ModelConfig) -> "KvLayout":
        return cls(config.num_layers, 2, config.num_kv_heads, config.head_dim)

    def pool_shape(self, num_blocks: int) -> tuple[int, int, int, int, int, int]:
        """[layers, planes, num_blocks, heads, 16 slots, width].

        Each (block, head) is one contiguous [16, width] tile, so neighbouring blocks of a layer form one
        batch of tiles that a batched matmul reads in place. Whoever writes a sequence's newest slot may also
        clear the slots after it in the same block: they hold nothing yet.
        """
        return (self.num_layers, self.planes, num_blocks, self.heads, BLOCK_SIZE, self.width)

    def block_bytes(self, dtype: DTypeName) -> int:
        """One block in all planes of all layers."""
        return math.prod(self.pool_shape(num_blocks=1)) * ITEM_BYTES[dtype]
