"""The gather against tokens read one by one; whatever no token owns holds NaN."""

import pytest
import torch
from semipd_kernels.gather_kv import gather_kv
from semipd_kernels.gather_kv.reference import gather_kv_reference
from support.kernels import DTYPES, Guarded, PagedBatch, paged_batch

from semipd.core.errors import SemipdError


def expected(batch: PagedBatch, seq: int, num_tokens: int) -> torch.Tensor:
    """[2, kv heads, num_tokens, head_dim]."""
    return torch.stack([part[:num_tokens].transpose(0, 1) for part in batch.tokens(seq)])


@pytest.mark.parametrize(
    ("block_size", "head_dim", "dtype"),
    [(16, 64, torch.bfloat16), (16, 256, torch.float32), (64, 128, torch.bfloat16), (64, 64, torch.float16)],
)
def test_tokens_come_in_order(block_size: int, head_dim: int, dtype: torch.dtype) -> None:
    """Whole blocks, a part of one, one token, fewer than there are, none; the memory behind stays."""
    lengths = [3 * block_size, 2 * block_size + 5, 1]
    batch = paged_batch(lengths, kv_heads=3, head_dim=head_dim, dtype=dtype, seed=1, block_size=block_size)
    room = 3 * block_size + 16
    for seq, num_tokens in [*enumerate(lengths), (0, block_size + 3), (0, 0)]:
        out = Guarded((2, 3, room, head_dim), dtype)
        got = gather_kv(batch.pool, batch.block_tables[seq], num_tokens, out.tensor)
        assert torch.equal(got, expected(batch, seq, num_tokens))
        assert torch.equal(out.tensor[:, :, :num_tokens], got)
        assert out.tensor[:, :, num_tokens:].isnan().all()
        out.check(written=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_says_the_same(dtype: torch.dtype) -> None:
    batch = paged_batch([37, 16], kv_heads=2, head_dim=64, dtype=dtype, seed=2)
    for seq, num_tokens in ((0, 37), (1, 16), (0, 3)):
        out = torch.full((2, 2, 40, 64), torch.nan, dtype=dtype)
        gather_kv_reference(batch.pool, batch.block_tables[seq], num_tokens, out)
        assert torch.equal(out[:, :, :num_tokens], expected(batch, seq, num_tokens))
        assert out[:, :, num_tokens:].isnan().all()


POOL, TABLE, OUT = torch.zeros(2, 5, 2, 16, 64), torch.zeros(3, dtype=torch.int32), torch.zeros(2, 2, 40, 64)


@pytest.mark.parametrize(
    ("pool", "table", "num_tokens", "out", "message"),
    [
        (POOL[:, ::2], TABLE, 1, OUT, "contiguous pool"),
        (POOL[0], TABLE, 1, OUT, "contiguous pool"),
        (POOL.double(), TABLE, 1, OUT.double(), "float64"),
        (torch.zeros(2, 5, 2, 16, 32), TABLE, 1, torch.zeros(2, 2, 40, 32), "and 32"),
        (torch.zeros(2, 5, 2, 24, 64), TABLE, 1, OUT, "power of two"),
        (POOL, TABLE.long(), 1, OUT, "int32"),
        (POOL, torch.zeros(6, dtype=torch.int32)[::2], 1, OUT, "contiguous block table"),
        (POOL, TABLE, 1, OUT.bfloat16(), "out is"),
        (POOL, TABLE, 1, OUT[:, :1], "out is"),
        (POOL, TABLE, 41, OUT, "0 to 40 tokens"),
        (POOL, TABLE[:2], 33, OUT, "0 to 32 tokens"),
        (POOL, TABLE, -1, OUT, "not -1"),
    ],
)
def test_refuses_what_it_cannot_do(
    pool: torch.Tensor, table: torch.Tensor, num_tokens: int, out: torch.Tensor, message: str
) -> None:
    with pytest.raises(SemipdError, match=message) as raised:
        gather_kv(pool, table, num_tokens, out)
    assert raised.value.code == "unsupported_kernel"
