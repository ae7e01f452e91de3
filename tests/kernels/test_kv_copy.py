"""Copies against loops over single tokens, bit for bit; what must not be touched holds NaN throughout."""

import random

import pytest
import torch
from semipd_kernels.kv_copy import copy_blocks, gather_kv, scatter_kv
from semipd_kernels.kv_copy import launch as launches
from semipd_kernels.kv_copy.reference import (
    copy_blocks_reference,
    gather_kv_reference,
    scatter_kv_reference,
)
from support.kernels import DTYPES, randn
from support.seeds import each_seed
from torch import Tensor

from semipd.core.errors import SemipdError

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
WIDTHS = (torch.bfloat16, torch.float32)
"""One dtype of each width: only words are copied."""

# layers, kv heads, block size, head dim; with an odd number of heads the last tile of a block is not full
SHAPES = [(1, 1, 16, 64), (3, 2, 16, 128), (1, 1, 32, 256), (1, 3, 64, 64), (1, 5, 16, 64)]


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.dtype])


def pool_of(shape: tuple[int, int, int, int], num_blocks: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers, every third block NaN."""
    num_layers, num_heads, block_size, head_dim = shape
    pool = randn((num_layers, 2, num_blocks, num_heads, block_size, head_dim), dtype, seed=seed)
    pool[:, :, ::3] = torch.nan
    return pool


def tokens_of(pool: Tensor, table: list[int], num_tokens: int) -> Tensor:
    """The oracle: one token, head and plane at a time."""
    num_layers, _, _, num_heads, block_size, head_dim = pool.shape
    out = torch.full((num_layers, 2, num_tokens, num_heads, head_dim), torch.nan, dtype=pool.dtype)
    for layer in range(num_layers):
        for kind in range(2):
            for token in range(num_tokens):
                for head in range(num_heads):
                    block, slot = table[token // block_size], token % block_size
                    out[layer, kind, token, head] = pool[layer, kind, block, head, slot]
    return out


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in a block of these tests, the last one not full."""
    monkeypatch.setattr(launches, "TILE", 1024)


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_copies_blocks(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    pool = pool_of(shape, 9, dtype, seed=1)
    expected = pool.clone()
    for src, dst in ((3, 1), (4, 8), (4, 2)):
        expected[:, :, dst] = pool[:, :, src]
    sources, targets = torch.tensor([3, 4, 4]), torch.tensor([1, 8, 2])
    by_reference = pool.clone()
    copy_blocks(pool, sources.int(), targets.int(), num_sms=1)
    assert torch.equal(bits(pool), bits(expected))
    copy_blocks_reference(by_reference, sources, targets)
    assert torch.equal(bits(by_reference), bits(expected))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_pairs_outside_the_pool_are_skipped(index_dtype: torch.dtype) -> None:
    sources = torch.tensor([-1, 2, 6, 2, 3], dtype=index_dtype)
    targets = torch.tensor([-1, 6, 1, -5, 4], dtype=index_dtype)
    pool = pool_of((1, 1, 16, 64), 6, torch.bfloat16, seed=2)
    expected, by_reference = pool.clone(), pool.clone()
    expected[:, :, 4] = pool[:, :, 3]
    copy_blocks(pool, sources, targets, num_sms=2)
    assert torch.equal(bits(pool), bits(expected))
    copy_blocks_reference(by_reference, sources, targets)
    assert torch.equal(bits(by_reference), bits(expected))


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last_block_tokens", [1, None])
def test_gathers_and_scatters(
    shape: tuple[int, int, int, int], dtype: torch.dtype, last_block_tokens: int | None
) -> None:
    block_size = shape[2]
    table, num_tokens = [7, 3, 1], 2 * block_size + (last_block_tokens or block_size)
    pool = pool_of(shape, 9, dtype, seed=3)
    expected = tokens_of(pool, table, num_tokens)
    out = torch.full_like(expected, torch.nan)
    index = torch.tensor([*table, 0, -7], dtype=torch.int32)
    assert gather_kv(pool, index, out, num_sms=1) is out
    assert torch.equal(bits(out), bits(expected))
    by_reference = torch.zeros_like(out)
    gather_kv_reference(pool, index, by_reference)
    assert torch.equal(bits(by_reference), bits(expected))

    fresh = torch.full_like(pool, torch.nan)
    also_fresh = fresh.clone()
    scatter_kv(out, index, fresh, num_sms=2)
    assert torch.equal(bits(tokens_of(fresh, table, num_tokens)), bits(expected))
    if last_block_tokens:
        assert fresh[:, :, table[-1], :, last_block_tokens:].isnan().all(), "written behind the last token"
    unused = [block for block in range(9) if block not in table]
    assert fresh[:, :, unused].isnan().all(), "written to blocks of others"
    scatter_kv_reference(out, index, also_fresh)
    assert torch.equal(bits(also_fresh), bits(fresh))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_tokens_of_blocks_outside_the_pool_are_skipped(index_dtype: torch.dtype) -> None:
    pool = randn((1, 2, 4, 1, 16, 64), torch.float32, seed=4)
    table = torch.tensor([2, 4, -1, 1], dtype=index_dtype)
    out = torch.zeros(1, 2, 60, 1, 64)
    gather_kv(pool, table, out, num_sms=1)
    expected = tokens_of(pool, [2, 0, 0, 1], 60)
    expected[:, :, 16:48] = 0
    assert torch.equal(out, expected)
    before = pool.clone()
    scatter_kv(torch.ones_like(out), table, pool, num_sms=1)
    assert torch.equal(pool[:, :, [0, 3]], before[:, :, [0, 3]])
    assert (pool[:, :, 2] == 1).all()
    assert (pool[:, :, 1, :, :12] == 1).all()
    assert torch.equal(pool[:, :, 1, :, 12:], before[:, :, 1, :, 12:])


def test_some_layers_only_and_nothing_at_all() -> None:
    pool = pool_of((4, 1, 16, 64), 5, torch.float16, seed=5)
    before = pool.clone()
    table = torch.tensor([4, 1], dtype=torch.int32)
    out = torch.empty(2, 2, 20, 1, 64, dtype=torch.float16)
    gather_kv(pool[1:3], table, out, num_sms=1)
    assert torch.equal(bits(out), bits(tokens_of(pool[1:3], [4, 1], 20)))
    gather_kv(pool, table[:0], torch.empty(4, 2, 0, 1, 64, dtype=torch.float16), num_sms=1)
    copy_blocks(pool, table[:0], table[:0], num_sms=1)
    assert torch.equal(bits(pool), bits(before))


def test_the_number_of_sms_changes_nothing() -> None:
    pool = pool_of((2, 3, 16, 64), 12, torch.bfloat16, seed=6)
    table = torch.tensor(random.Random(6).sample(range(12), 7), dtype=torch.int32)
    outs = []
    for num_sms in (1, 3, 1000):
        out = torch.empty(2, 2, 100, 3, 64, dtype=torch.bfloat16)
        outs.append(gather_kv(pool, table, out, num_sms=num_sms))
    assert torch.equal(bits(outs[0]), bits(outs[1]))
    assert torch.equal(bits(outs[0]), bits(outs[2]))


def test_what_is_not_supported_is_refused() -> None:
    pool = randn((2, 2, 5, 1, 16, 64), torch.float32, seed=7)
    table, kv = torch.tensor([1, 2], dtype=torch.int32), torch.zeros(2, 2, 30, 1, 64)

    def refused(match: str, call: object, *arguments: object, num_sms: int = 1) -> None:
        with pytest.raises(SemipdError, match=match) as refusal:
            call(*arguments, num_sms=num_sms)  # type: ignore[operator]
        assert refusal.value.code == "unsupported_kernel"

    refused("contiguous pool", copy_blocks, pool[:, :, :3], table, table)
    refused("contiguous pool", copy_blocks, pool[0], table, table)
    refused("16 bytes; got 3", copy_blocks, pool[..., :3].contiguous(), table, table)
    refused("one length", copy_blocks, pool, table, table[:1])
    refused("one length", copy_blocks, pool, table, table.long())
    refused("src_blocks", copy_blocks, pool, table.float(), table)
    refused("dst_blocks", copy_blocks, pool, table, table[None])
    refused("at least one SM", copy_blocks, pool, table, table, num_sms=0)
    refused("block_table", gather_kv, pool, table[None], kv)
    refused("for 33 tokens", gather_kv, pool, table, torch.zeros(2, 2, 33, 1, 64))
    refused("contiguous tokens", gather_kv, pool, table, kv[:1])
    refused("contiguous tokens", gather_kv, pool, table, kv.half())
    refused("contiguous tokens", scatter_kv, kv[:, :, ::2], table, pool)
    refused("at least one SM", scatter_kv, kv, table, pool, num_sms=0)


@pytest.mark.soak
@each_seed(range(100))
def test_random_copies(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(launches, "TILE", rng.choice([256, 1024, 4096]))
    shape = (rng.randint(1, 4), rng.randint(1, 9), rng.choice([16, 32, 64, 128]), rng.choice([64, 128, 256]))
    dtype, num_blocks = rng.choice(DTYPES), rng.randint(4, 20)
    pool = pool_of(shape, num_blocks, dtype, seed)
    blocks = rng.sample(range(num_blocks), num_blocks)
    num_pairs = rng.randint(1, num_blocks // 2)
    sources, targets = torch.tensor(blocks[:num_pairs]), torch.tensor(blocks[num_pairs : 2 * num_pairs])
    expected = pool.clone()
    copy_blocks_reference(expected, sources, targets)
    copy_blocks(pool, sources, targets, num_sms=rng.choice([1, 3, 50]))
    assert torch.equal(bits(pool), bits(expected))

    table = torch.tensor(blocks[: rng.randint(1, num_blocks)])
    num_tokens = rng.randint(1, len(table) * shape[2])
    out = torch.empty(shape[0], 2, num_tokens, shape[1], shape[3], dtype=dtype)
    expected = torch.empty_like(out)
    gather_kv_reference(pool, table, expected)
    assert torch.equal(bits(gather_kv(pool, table, out, num_sms=rng.randint(1, 9))), bits(expected))
    fresh = torch.zeros_like(pool)
    by_reference = fresh.clone()
    scatter_kv_reference(out, table, by_reference)
    scatter_kv(out, table, fresh, num_sms=rng.randint(1, 9))
    assert torch.equal(bits(fresh), bits(by_reference))
