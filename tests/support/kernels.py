"""What the operations' tests share: error limits, NaN-poisoned memory, ragged paged batches, a slow oracle.

batch = paged_batch([1, 17, 300], kv_heads=2, head_dim=64, dtype=torch.bfloat16, seed=3)
q = randn((3, 8, 64), torch.bfloat16, seed=4)
out = Guarded((3, 8, 64), torch.bfloat16)
decode_attention(q, batch.pool, batch.block_tables, batch.kv_lens, ..., out=out.tensor)
out.check()
assert_close(out.tensor, oracle_attention(q, batch, query_lens=[1, 1, 1], scale=0.125))
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Several threads on tiny tensors, on cores that others use too, spin more than they work.
torch.set_num_threads(1)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

RELATIVE_LIMITS = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-5}
"""Largest error of an element over the largest magnitude of its row. Two roundings of the output take 2^-8 in
bf16 and 2^-11 in fp16; the rest is room for probabilities and products that are rounded to the input type."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected| of any row over the largest |expected| of that row (last dimension).

    Infinite where only one of the two is finite; equal infinities count as equal, NaN never does.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not actual.numel():
        return 0.0
    got, want = actual.double(), expected.double()
    error = torch.where(got == want, 0.0, (got - want).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    finite = want.where(want.isfinite(), 0.0)
    scale = finite.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return float((error / scale).max())


def assert_close(actual: Tensor, expected: Tensor, limit: float | None = None) -> None:
    """`limit` defaults to RELATIVE_LIMITS of `actual`'s dtype; `expected` may have a wider one."""
    limit = RELATIVE_LIMITS[actual.dtype] if limit is None else limit
    error = relative_error(actual, expected)
    assert error <= limit, f"relative error {error:.3g} > {limit:.3g} ({actual.dtype}, {tuple(actual.shape)})"


def randn(shape: Sequence[int], dtype: torch.dtype, *, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator) * scale).to(dtype)


def with_row_stride(tensor: Tensor, padding: int = 8) -> Tensor:
    """The same values in rows with a gap of `padding` elements that hold NaN (integers: the smallest)."""
    wide = _poison((*tensor.shape[:-1], tensor.shape[-1] + padding), tensor.dtype)
    view = wide[..., : tensor.shape[-1]]
    view.copy_(tensor)
    return view


class Guarded:
    """An output of poison between two guards: `check()` after the launch finds writes outside and holes.

    `tensor` is contiguous and aligned like a fresh allocation. Floating point only.
    """

    GUARD = 64  # elements: keeps 16-byte alignment for every dtype

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = int(torch.Size(shape).numel())
        self._all = torch.full((size + 2 * self.GUARD,), torch.nan, dtype=dtype)
        self.tensor = self._all[self.GUARD : self.GUARD + size].view(tuple(shape))

    def check(self, *, written: bool = True) -> None:
        """`written` False: only the guards, for outputs that are filled in part."""
        assert self._all[: self.GUARD].isnan().all(), "written before the output"
        assert self._all[-self.GUARD :].isnan().all(), "written behind the output"
        if written:
            holes = int(self.tensor.isnan().sum())
            assert not holes, f"{holes} of {self.tensor.numel()} elements are NaN or were never written"


@dataclass(frozen=True)
class PagedBatch:
    """Sequences in the KV pool of one layer. Whatever no sequence owns holds NaN, block 0 too.

    Attributes:
        pool: [2 (keys, values), num_blocks, kv heads, block_size, head_dim], contiguous.
        block_tables: int32 [S, W], a view with a row stride above W. Entries behind a sequence's last block
            are block 0 or, every second one, a block that nobody owns.
        kv_lens: int32 [S].
    """

    pool: Tensor
    block_tables: Tensor
    kv_lens: Tensor

    @property
    def block_size(self) -> int:
        return self.pool.shape[3]

    @property
    def kv_heads(self) -> int:
        return self.pool.shape[2]

    def slots(self, seq: int) -> list[int]:
        """Slot of each token of the sequence."""
        table = self.block_tables[seq].tolist()
        size = self.block_size
        return [table[token // size] * size + token % size for token in range(int(self.kv_lens[seq]))]

    def tokens(self, seq: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_len, kv heads, head_dim], read token by token."""
        size = self.block_size
        picked = [self.pool[:, slot // size, :, slot % size] for slot in self.slots(seq)]
        if not picked:
            empty = self.pool.new_empty(0, self.kv_heads, self.pool.shape[4])
            return empty, empty
        keys, values = torch.stack(picked, dim=1)
        return keys, values


def paged_batch(
    kv_lens: Sequence[int],
    *,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    block_size: int = 16,
    spare_blocks: int = 3,
    spare_columns: int = 2,
) -> PagedBatch:
    """Random keys and values in blocks handed out in random order; a length of 0 is a padding row."""
    rng = random.Random(seed)
    needed = [-(-kv_len // block_size) for kv_len in kv_lens]
    num_blocks = 1 + sum(needed) + spare_blocks
    free = rng.sample(range(1, num_blocks), num_blocks - 1)
    pool = torch.full((2, num_blocks, kv_heads, block_size, head_dim), torch.nan, dtype=dtype)
    tables = with_row_stride(
        torch.zeros(len(kv_lens), max([1, *needed]) + spare_columns, dtype=torch.int32), padding=5
    )
    for seq, (kv_len, count) in enumerate(zip(kv_lens, needed, strict=True)):
        for column in range(count):
            block, filled = free.pop(), min(block_size, kv_len - column * block_size)
            tables[seq, column] = block
            pool[:, block, :, :filled] = randn(
                (2, kv_heads, filled, head_dim), dtype, seed=rng.getrandbits(32)
            )
    for seq, count in enumerate(needed):  # `free` now names what nobody owns
        for column in range(count, tables.shape[1], 2):
            if free:
                tables[seq, column] = rng.choice(free)
    return PagedBatch(pool, tables, torch.tensor(list(kv_lens), dtype=torch.int32))


def oracle_attention(q: Tensor, batch: PagedBatch, *, query_lens: Sequence[int], scale: float) -> Tensor:
    """Causal attention, one query and head at a time, in fp64.

    `q` [sum(query_lens), heads, head_dim] holds each sequence's last `query_lens[i]` tokens, whose keys and
    values are in the pool. Returns the same shape in fp64; a query that sees no token gives zeros.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // batch.kv_heads
    row = 0
    for seq, length in enumerate(query_lens):
        keys, values = batch.tokens(seq)
        for query in range(length):
            visible = int(batch.kv_lens[seq]) - length + query + 1
            for head in range(q.shape[1] if visible > 0 else 0):
                k = keys[:visible, head // group].double()
                v = values[:visible, head // group].double()
                out[row, head] = (k @ q[row, head].double() * scale).softmax(0) @ v
            row += 1
    assert row == q.shape[0], (row, q.shape)
    return out


def starts_of(lengths: Sequence[int]) -> Tensor:
    """int32 [S + 1]: where each sequence's rows begin, and the total."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _poison(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    value = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full(tuple(shape), value, dtype=dtype)
