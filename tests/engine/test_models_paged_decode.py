"""Decode attention in pool order against a plain softmax over each sequence's own tokens."""

import random

import numpy as np
import pytest
import torch
from support.seeds import each_seed
from torch import Tensor

from semipd.devices.cpu.math import paged_decode
from semipd.devices.cpu.math.paged_decode import EntryLayout, PagedDecode, lay_out

KV_HEADS, GROUP, HEAD_DIM = 4, 3, 64
torch.set_num_threads(1)
BLOCK_BYTES = KV_HEADS * 16 * HEAD_DIM * 4
SCALE = 0.2
MIN_RUN, MAX_GAP = 4, 2  # blocks


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if blocks were large: small tables then have runs, gaps and strays."""
    monkeypatch.setattr(paged_decode, "MIN_RUN_BYTES", MIN_RUN * BLOCK_BYTES)
    monkeypatch.setattr(paged_decode, "MAX_GAP_BYTES", MAX_GAP * BLOCK_BYTES)


def naive_attention(q: Tensor, keys: Tensor, values: Tensor, table: list[int], kv_len: int) -> Tensor:
    """q [heads, head_dim]; keys and values [num_blocks, kv heads, 16, head_dim], read token by token."""
    rows = []
    for head, query in enumerate(q.double()):
        at = [(table[token // 16], head // GROUP, token % 16) for token in range(kv_len)]
        k = torch.stack([keys[slot] for slot in at]).double()
        v = torch.stack([values[slot] for slot in at]).double()
        rows.append((k @ query * SCALE).softmax(0) @ v)
    return torch.stack(rows).float()


def block_tables(rng: random.Random, num_blocks: int) -> list[list[int]]:
    """Like a pool's life: stretches in order, scattered blocks, prefixes that several sequences share."""
    free = list(range(1, num_blocks))
    tables: list[list[int]] = []
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.5:
            rng.shuffle(free)
        else:
            free.sort()
        shared: list[int] = []
        if tables and rng.random() < 0.5:
            donor = rng.choice(tables)
            shared = donor[: rng.randint(0, len(donor) - 1)]
        own = [free.pop(0) for _ in range(min(rng.randint(1, 12), len(free)))]
        tables.append(shared + own)
    return tables


def poisoned_pool(num_blocks: int, tables: list[list[int]], kv_lens: list[int]) -> Tensor:
    pool = torch.full((1, 2, num_blocks, KV_HEADS, 16, HEAD_DIM), torch.nan)
    for table, kv_len in zip(tables, kv_lens, strict=True):
        for idx, block in enumerate(table):
            pool[:, :, block, :, : kv_len - idx * 16] = torch.randn(1, 2, KV_HEADS, 16, HEAD_DIM)[
                :, :, :, : kv_len - idx * 16
            ]
    return pool


def attended(decode: PagedDecode, q: Tensor, pool: Tensor) -> Tensor:
    out = torch.empty_like(q)
    decode.attend(q, pool[0, 0], pool[0, 1], SCALE, out)
    return out


@each_seed(range(12), soak=range(12, 40))
def test_equals_attention_token_by_token(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_blocks = rng.choice([90, 200])
    tables = block_tables(rng, num_blocks)
    kv_lens = [len(table) * 16 - rng.randint(0, 15) for table in tables]
    pool = poisoned_pool(num_blocks, tables, kv_lens)
    width = max(map(len, tables)) + 1
    padded = np.array([table + [0] * (width - len(table)) for table in tables])
    q = torch.randn(len(tables), KV_HEADS * GROUP, HEAD_DIM)

    decode = PagedDecode(padded, np.array(kv_lens), pool)
    out = attended(decode, q, pool)

    for row, table, kv_len, result in zip(q, tables, kv_lens, out, strict=True):
        expected = naive_attention(row, pool[0, 0], pool[0, 1], table, kv_len)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    table = [3, 1, 7, 8]
    pool = poisoned_pool(9, [table], [60])
    q = 1000 * torch.randn(1, KV_HEADS * GROUP, HEAD_DIM)
    decode = PagedDecode(np.array([table]), np.array([60]), pool)
    expected = naive_attention(q[0], pool[0, 0], pool[0, 1], table, 60)
    torch.testing.assert_close(attended(decode, q, pool)[0], expected, rtol=1e-2, atol=1e-2)


def entry_blocks(layout: EntryLayout) -> list[int]:
    """The pool block that each entry reads."""
    blocks: dict[int, int] = {}
    for run in layout.runs:
        for idx in range(run.num_blocks):
            assert run.first_entry + idx not in blocks
            blocks[run.first_entry + idx] = run.first_block + idx
    first_copied = layout.num_entries - layout.copied_blocks.size
    blocks |= dict(enumerate(layout.copied_blocks.tolist(), start=first_copied))
    assert sorted(blocks) == list(range(layout.num_entries))
    return [blocks[entry] for entry in range(layout.num_entries)]


@each_seed(range(200))
def test_every_pair_has_an_entry_of_its_own_that_reads_its_block(seed: int) -> None:
    rng = random.Random(seed)
    tables = block_tables(rng, num_blocks=rng.choice([80, 300]))
    pairs = [block for table in tables for block in table]
    layout = lay_out(np.array(pairs), rng.choice([BLOCK_BYTES // 8, BLOCK_BYTES, BLOCK_BYTES * 8]))
    entries = layout.entry_of_pair.tolist()
    assert len(set(entries)) == len(entries)
    reads = entry_blocks(layout)
    assert [reads[entry] for entry in entries] == pairs


def test_neighbours_are_read_in_place_and_strays_are_copied() -> None:
    long_run = list(range(10, 10 + 2 * MIN_RUN))
    after_gap = list(range(long_run[-1] + MAX_GAP + 1, long_run[-1] + MAX_GAP + 4))
    strays = [100, 110]
    layout = lay_out(np.array(strays + after_gap + long_run), BLOCK_BYTES)
    assert [(run.first_block, run.num_blocks) for run in layout.runs] == [(10, after_gap[-1] + 1 - 10)]
    assert layout.copied_blocks.tolist() == strays


def test_a_shared_prefix_is_read_in_place_by_each_sequence() -> None:
    prefix = list(range(5, 25))
    layout = lay_out(np.array(prefix * 3), BLOCK_BYTES)
    assert [(run.first_block, run.num_blocks) for run in layout.runs] == [(5, 20)] * 3
    assert layout.num_entries == 60
