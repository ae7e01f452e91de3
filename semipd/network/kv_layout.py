"""The shape of the KV pool. No torch here."""

import math
from dataclasses import dataclass

from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What each layer keeps of a token: `planes` (keys, values) of `heads` rows of `width` elements.

    Attributes:
        block_size: tokens per block; the device chooses it, see DeviceInfo.
    """

    num_layers: int
    planes: int
    heads: int
    width: int
    block_size: int

    @classmethod
    def of(cls, config: ModelConfig, block_size: int) -> "KvLayout":
        return cls(config.num_layers, 2, config.num_kv_heads, config.head_dim, block_size)

    def pool_shape(self, num_blocks: int) -> tuple[int, int, int, int, int, int]:
        """[layers, planes, num_blocks, heads, block_size slots, width].

        Each (block, head) is one contiguous [block_size, width] tile, so neighbouring blocks of a layer form
        one batch of tiles that a batched matmul reads in place. Whoever writes a sequence's newest slot may
        also clear the slots after it in the same block: they hold nothing yet.
        """
        return (self.num_layers, self.planes, num_blocks, self.heads, self.block_size, self.width)

    def block_bytes(self, dtype: DTypeName) -> int:
        """One block in all planes of all layers."""
        return math.prod(self.pool_shape(num_blocks=1)) * ITEM_BYTES[dtype]
