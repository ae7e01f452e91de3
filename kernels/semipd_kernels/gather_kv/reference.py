"""What the gather means, in plain torch."""

from torch import Tensor


def gather_kv_reference(kv_layer: Tensor, block_table: Tensor, num_tokens: int, out: Tensor) -> None:
    blocks = block_table[: -(-num_tokens // kv_layer.shape[3])].long()
    # [2, kv heads, blocks, block size, D] without the last block's empty slots
    out[:, :, :num_tokens] = kv_layer[:, blocks].transpose(1, 2).flatten(2, 3)[:, :, :num_tokens]
