"""The helpers of the operations' tests find what they are there to find."""

import pytest
import torch
from support.kernels import (
    Guarded,
    assert_close,
    oracle_attention,
    paged_batch,
    randn,
    relative_error,
    starts_of,
    with_row_stride,
)


def test_relative_error_is_per_row() -> None:
    expected = torch.tensor([[1000.0, 0.0], [1.0, 0.5]])
    actual = expected + torch.tensor([[0.0, 0.0], [0.0, 0.1]])
    assert relative_error(actual, expected) == pytest.approx(0.1)
    assert relative_error(expected, expected) == 0.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_must_be_equal(value: float) -> None:
    plain, odd = torch.ones(2, 3), torch.ones(2, 3)
    odd[1, 2] = value
    with pytest.raises(AssertionError, match="relative error inf"):
        assert_close(odd, plain)
    with pytest.raises(AssertionError, match="relative error inf"):
        assert_close(plain, odd)
    if value == value:
        assert_close(odd, odd.clone())


def test_limits_follow_the_dtype_of_the_result() -> None:
    expected = torch.ones(1, 4)
    assert_close((expected * 1.01).bfloat16(), expected)
    with pytest.raises(AssertionError):
        assert_close((expected * 1.01).half(), expected)


def test_guarded_output() -> None:
    out = Guarded((2, 3), torch.float32)
    with pytest.raises(AssertionError, match="6 of 6"):
        out.check()
    out.check(written=False)
    out.tensor.zero_()
    out.check()
    out.tensor.as_strided((1,), (1,), out.tensor.storage_offset() + 6).zero_()
    with pytest.raises(AssertionError, match="behind"):
        out.check()


def test_row_stride_keeps_values() -> None:
    values = randn((3, 5), torch.float32, seed=1)
    wide = with_row_stride(values, padding=2)
    assert wide.stride() == (7, 1)
    assert torch.equal(wide, values)
    assert with_row_stride(torch.zeros(2, 2, dtype=torch.int32)).stride() == (10, 1)


def test_paged_batch_owns_disjoint_blocks_in_a_pool_of_nan() -> None:
    batch = paged_batch([1, 0, 33, 16], kv_heads=2, head_dim=8, dtype=torch.float32, seed=5)
    slots = [slot for seq in range(4) for slot in batch.slots(seq)]
    assert len(slots) == len(set(slots)) == 50
    assert int(batch.pool.isfinite().sum()) == 50 * 2 * 2 * 8
    assert batch.pool[:, 0].isnan().all()
    assert batch.block_tables.min() >= 0
    assert batch.block_tables.max() < batch.pool.shape[1]
    assert batch.block_tables.stride(0) > batch.block_tables.shape[1]
    keys, _ = batch.tokens(2)
    block = int(batch.block_tables[2, 2])
    assert torch.equal(keys[32], batch.pool[0, block, :, 0])


def test_oracle_equals_torch_on_one_whole_prompt() -> None:
    batch = paged_batch([21], kv_heads=2, head_dim=8, dtype=torch.float32, seed=6)
    q = randn((21, 4, 8), torch.float32, seed=7)
    keys, values = (part.transpose(0, 1).repeat_interleave(2, 0) for part in batch.tokens(0))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), keys, values, is_causal=True, scale=0.3
    )
    assert_close(oracle_attention(q, batch, query_lens=[21], scale=0.3), expected.transpose(0, 1), 1e-5)


def test_starts() -> None:
    assert starts_of([3, 0, 2]).tolist() == [0, 3, 3, 5]
