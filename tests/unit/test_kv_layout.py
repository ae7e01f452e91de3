"""What kernels rely on about the shape of the KV pool."""

import pytest
import torch

from semipd.network.kv_layout import KvLayout


@pytest.mark.parametrize("block_size", [16, 64])
def test_a_block_of_one_head_is_one_box_of_a_matrix(block_size: int) -> None:
    """A layer is a matrix of token rows in which the tokens of one block and head follow each other: what a
    tensor descriptor (TMA) of two dimensions can load at once, from 16-byte aligned addresses."""
    layout = KvLayout(num_layers=2, planes=2, heads=3, width=64, block_size=block_size)
    shape = torch.Size(layout.pool_shape(num_blocks=5))
    layer = torch.arange(shape.numel()).view(shape)[1]
    matrix = layer.view(-1, 64)
    assert matrix.data_ptr() == layer.data_ptr()
    for plane, block, head in ((0, 0, 0), (0, 4, 2), (1, 2, 1)):
        first_row = ((plane * 5 + block) * 3 + head) * block_size
        box = matrix[first_row : first_row + block_size]
        assert torch.equal(box, layer[plane, block, head])
        assert box.is_contiguous()
        assert first_row * 64 * 2 % 16 == 0
