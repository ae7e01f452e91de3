"""What the operations mean, in plain torch."""

from torch import Tensor


def copy_blocks_reference(pool: Tensor, src_blocks: Tensor, dst_blocks: Tensor) -> None:
    num_blocks = pool.shape[2]
    for src, dst in zip(src_blocks.tolist(), dst_blocks.tolist(), strict=True):
        if 0 <= src < num_blocks and 0 <= dst < num_blocks:
            pool[:, :, dst] = pool[:, :, src]


def gather_kv_reference(pool: Tensor, block_table: Tensor, out: Tensor) -> None:
    block_size, num_tokens = pool.shape[4], out.shape[2]
    for start, block in zip(range(0, num_tokens, block_size), block_table.tolist(), strict=False):
        if 0 <= block < pool.shape[2]:
            tokens = out[:, :, start : start + block_size]
            tokens.copy_(pool[:, :, block].transpose(2, 3)[:, :, : tokens.shape[2]])


def scatter_kv_reference(kv: Tensor, block_table: Tensor, pool: Tensor) -> None:
    block_size, num_tokens = pool.shape[4], kv.shape[2]
    for start, block in zip(range(0, num_tokens, block_size), block_table.tolist(), strict=False):
        if 0 <= block < pool.shape[2]:
            tokens = kv[:, :, start : start + block_size]
            pool[:, :, block].transpose(2, 3)[:, :, : tokens.shape[2]] = tokens
