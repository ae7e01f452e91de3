"""Decode attention on the interpreter and its reference against a slow oracle; splits against brute force."""

import heapq
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from semipd_kernels.decode_attention import (
    DecodeConfig,
    DecodeWorkspace,
    choose_num_splits,
    decode_attention,
    decode_workspace,
    most_items,
)
from semipd_kernels.decode_attention.configs import SM_SHARED_KIB, candidates, choose
from semipd_kernels.decode_attention.kernel import share_out
from semipd_kernels.decode_attention.launch import batch_pad, launches, splits_at_once
from semipd_kernels.decode_attention.reference import decode_attention_reference
from semipd_kernels.dispatch import takes_triton
from support.interpreter import multiply_bf16
from support.kernels import (
    DTYPES,
    Guarded,
    PagedBatch,
    assert_close,
    oracle_attention,
    paged_batch,
    randn,
    relative_error,
    with_row_stride,
)
from support.seeds import each_seed
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from semipd.core.errors import SemipdError

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = DecodeConfig(tile=32, buffers=2, num_warps=4, ctas_per_sm=2)
"""Tiles of 32 keys (16 for fp32), so that short contexts have many."""
EDGES = [1, 16, 17, 0, 32, 33, 95, 15]
"""One token, a block, one more; a padded row; a tile, one more; three tiles less one."""


@pytest.fixture(autouse=True)
def _bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_bf16(monkeypatch)


class Case:
    """A batch, its queries in rows that lie apart, and the oracle's answer."""

    def __init__(
        self,
        kv_lens: Sequence[int],
        *,
        group: int = 3,
        kv_heads: int = 2,
        head_dim: int = 64,
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
        scale: float | None = None,
        seed: int = 0,
    ) -> None:
        self.batch = poisoned_padding(
            paged_batch(
                kv_lens,
                kv_heads=kv_heads,
                head_dim=head_dim,
                dtype=dtype,
                seed=seed,
                block_size=block_size,
            )
        )
        shape = (len(kv_lens), group * kv_heads, head_dim)
        self.q = with_row_stride(randn(shape, dtype, seed=seed + 1).flatten(1)).unflatten(1, shape[1:])
        self.scale = scale
        self.expected = oracle_attention(
            self.q,
            self.batch,
            query_lens=[1] * len(kv_lens),
            scale=head_dim**-0.5 if scale is None else scale,
        )

    def run(
        self,
        num_splits: int | None,
        config: DecodeConfig | None = SMALL,
        num_sms: int = 8,
        *,
        tma: bool = False,
    ) -> Tensor:
        """Attend with every output and every byte of workspace poisoned."""
        out = Guarded(self.q.shape, self.q.dtype)
        workspace = None if num_splits is None else poisoned_workspace(self, num_splits)
        returned = decode_attention(
            self.q,
            self.batch.pool,
            self.batch.block_tables,
            self.batch.kv_lens,
            num_sms=num_sms,
            scale=self.scale,
            num_splits=num_splits,
            out=out.tensor,
            workspace=workspace,
            config=config,
            tma=tma,
        )
        assert returned is out.tensor
        out.check()
        assert workspace is None or not workspace.counters.any(), "a counter is left"
        assert not out.tensor[self.batch.kv_lens == 0].any(), "a padded row is not zero"
        return out.tensor


def poisoned_padding(batch: PagedBatch) -> PagedBatch:
    """Tables of padded rows, and entries past a context, name blocks far outside the pool."""
    for seq, kv_len in enumerate(batch.kv_lens.tolist()):
        batch.block_tables[seq, -(-kv_len // batch.block_size) :] = 2**31 - 1 if seq % 2 else -(2**31)
    return batch


def poisoned_workspace(case: Case, num_splits: int, batch: int | None = None) -> DecodeWorkspace:
    rows, heads, head_dim = case.q.shape
    rows = rows if batch is None else batch
    kv_heads = case.batch.kv_heads
    workspace = decode_workspace(rows, heads, kv_heads, head_dim, rows * num_splits, CPU)
    workspace.partial_out.fill_(torch.nan)
    workspace.partial_lse.fill_(torch.nan)
    return workspace


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_reference_is_what_the_oracle_says(dtype: torch.dtype, head_dim: int) -> None:
    case = Case(EDGES, head_dim=head_dim, dtype=dtype)
    out = Guarded(case.q.shape, dtype)
    decode_attention_reference(
        case.q,
        case.batch.pool,
        case.batch.block_tables,
        case.batch.kv_lens,
        head_dim**-0.5,
        out.tensor,
    )
    out.check()
    assert_close(out.tensor, case.expected)


def test_cpu_tensors_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semipd_kernels.dispatch.INTERPRETED", False)
    monkeypatch.setattr("semipd_kernels.decode_attention.launch.launches", None)
    case = Case(EDGES)
    assert not takes_triton(case.q)
    assert_close(case.run(num_splits=2), case.expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("num_splits", [1, 3, pytest.param(None, marks=pytest.mark.soak)])
def test_kernel_is_what_the_oracle_says(dtype: torch.dtype, head_dim: int, num_splits: int | None) -> None:
    """With the configuration of the device, and the number of splits chosen where it is not given."""
    case = Case([*EDGES, 150], head_dim=head_dim, dtype=dtype, seed=head_dim)
    assert_close(case.run(num_splits, config=None), case.expected)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 8, 12, 16, 17, 33, 64])
def test_every_group_size(group: int) -> None:
    """Also those that are no power of two, whose tile has rows of no head; at the widest heads."""
    case = Case([1, 40], group=group, kv_heads=2, head_dim=256, dtype=torch.bfloat16, seed=group)
    assert_close(case.run(num_splits=2), case.expected)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("group", [*range(1, 17), 17, 24, 32, 33, 48, 64])
def test_every_group_size_everywhere(group: int, head_dim: int, dtype: torch.dtype) -> None:
    for num_splits in (1, 2, 5):
        for kv_heads in (1, 3):
            case = Case(EDGES, group=group, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, seed=group)
            assert_close(case.run(num_splits), case.expected)


@pytest.mark.parametrize("block_size", [16, 32, 64, 256])
def test_block_sizes_below_and_above_a_tile(block_size: int) -> None:
    lengths = [block_size - 1, block_size, block_size + 1, 0, 2 * block_size + 3]
    case = Case(lengths, block_size=block_size, kv_heads=1, seed=block_size)
    for num_splits in (1, 4):
        assert_close(case.run(num_splits), case.expected)


@each_seed(range(3), soak=range(3, 10))
def test_the_number_of_splits_does_not_change_the_result(seed: int) -> None:
    """Beyond rounding. Very ragged: one context may be 100 times another, many are empty."""
    rng = random.Random(seed)
    longest = rng.choice([40, 300])
    lengths = [
        rng.choice([0, 1, rng.randint(1, 40), rng.randint(1, longest)]) for _ in range(rng.randint(1, 6))
    ]
    case = Case(lengths, group=rng.choice([1, 4, 5]), kv_heads=1, seed=seed)
    whole = case.run(num_splits=1)
    assert_close(whole, case.expected)
    for num_splits in (2, rng.randint(3, 12)):
        assert relative_error(case.run(num_splits), whole) < 2e-6


@pytest.mark.soak
@each_seed(range(150))
def test_random_batches(seed: int) -> None:
    rng = random.Random(1000 + seed)
    longest = rng.choice([20, 100, 700])
    case = Case(
        [rng.choice([0, rng.randint(1, longest)]) for _ in range(rng.randint(1, 24))],
        group=rng.randint(1, 20),
        kv_heads=rng.randint(1, 4),
        head_dim=rng.choice([64, 128, 256]),
        dtype=rng.choice(DTYPES),
        block_size=rng.choice([16, 32, 64]),
        seed=seed,
    )
    for num_splits in (None, 1, rng.randint(2, 9)):
        assert_close(case.run(num_splits, num_sms=rng.randint(1, 16)), case.expected)


def attend(case: Case, workspace: DecodeWorkspace, num_splits: int, out: Tensor | None = None) -> Tensor:
    batch = case.batch
    return decode_attention(
        case.q,
        batch.pool,
        batch.block_tables,
        batch.kv_lens,
        num_sms=8,
        num_splits=num_splits,
        workspace=workspace,
        out=out,
        config=SMALL,
    )


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.bfloat16, 256)])
def test_more_than_one_turn_of_the_merge(dtype: torch.dtype, head_dim: int) -> None:
    """Of its loop over splits and, with five heads of 256, of the one over heads."""
    tile, num_splits = SMALL.tile_of(dtype.itemsize), 4
    assert splits_at_once(5, head_dim, dtype.itemsize) < 10
    case = Case([0, 10 * tile, 0], group=5, kv_heads=1, head_dim=head_dim, dtype=dtype, seed=5)
    assert_close(case.run(num_splits), case.expected)


@pytest.mark.parametrize(("head_dim", "block_size"), [(64, 64), (128, 64), (256, 64), (128, 128)])
def test_tiles_by_tma(head_dim: int, block_size: int) -> None:
    """Behind a context lies NaN, which is read and counts for nothing: the same bits as by addresses."""
    lengths = [0, 1, block_size, 2 * block_size + 7, 190]
    case = Case(lengths, head_dim=head_dim, block_size=block_size, kv_heads=2, dtype=torch.bfloat16, seed=3)
    for num_splits in (1, 3):
        config = replace(choose(arch=90, head_dim=head_dim, num_sms=132), tile=min(64, 64 * 128 // head_dim))
        found = case.run(num_splits, config=config, tma=True)
        assert_close(found, case.expected)
        assert torch.equal(found, case.run(num_splits, config=config))


def in_order(monkeypatch: pytest.MonkeyPatch, order: Callable[[int], Sequence[int]]) -> None:
    """The interpreter's programs one after the other, as `order` (of their number) says."""
    original, places = interpreter_builder.set_grid_idx, list[int]()

    def set_grid_idx(x: int, y: int, z: int) -> None:
        if x == 0:
            places[:] = order(interpreter_builder.grid_dim[0])
        original(places[x], y, z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)


@each_seed(range(2), soak=range(2, 40))
def test_whoever_comes_last_merges_to_the_same_bits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([0, 1, rng.randint(1, 90)]) for _ in range(rng.randint(1, 2))] + [90]
    case = Case(lengths, group=rng.choice([1, 3, 4]), kv_heads=1, dtype=rng.choice(DTYPES), seed=seed)
    num_splits = rng.randint(2, 4)
    expected = case.run(num_splits)
    assert_close(expected, case.expected)
    for order in (lambda num: range(num)[::-1], lambda num: rng.sample(range(num), num)):
        with monkeypatch.context() as patch:
            in_order(patch, order)
            assert torch.equal(case.run(num_splits), expected)


@pytest.mark.parametrize("shares_workspace", [False, True])
def test_two_lanes_at_once_need_a_workspace_each(
    shares_workspace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three programs of one lane's launch, the other lane's whole launch, the rest of the first."""
    first, second = Case([200, 60], kv_heads=1, seed=1), Case([100, 220, 0], kv_heads=1, seed=2)
    spaces = [poisoned_workspace(first, 4, batch=3) for _ in range(2)]
    out, idle = torch.full_like(first.q, torch.nan), 7  # 17 tiles in 8 items: none is left for the last
    with monkeypatch.context() as patch:
        in_order(patch, lambda num: [0, 1, 2] + [idle] * (num - 3))
        attend(first, spaces[0], 4, out)
    other = attend(second, spaces[not shares_workspace], 4)
    with monkeypatch.context() as patch:
        in_order(patch, lambda num: [idle] * 3 + [*range(3, num)])
        attend(first, spaces[0], 4, out)
    errors = [relative_error(out, first.expected), relative_error(other, second.expected)]
    assert (max(errors) < 1e-5) is not shares_workspace


def test_a_launch_that_fails_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or by the driver, before any of its programs has run."""
    case = Case([90, 3])
    workspace = poisoned_workspace(case, 4)
    with pytest.raises(SemipdError):
        attend(case, workspace, 5)
    with monkeypatch.context() as patch:
        patch.setattr(interpreter_builder, "set_grid_dim", None)
        with pytest.raises(TypeError):
            attend(case, workspace, 4)
    assert not workspace.counters.any()
    assert_close(attend(case, workspace, 4), case.expected)


def test_far_more_items_than_tiles() -> None:
    """Most splits are empty; every tile has one of its own."""
    case = Case([33, 0, 1], kv_heads=1)
    assert_close(case.run(num_splits=40), case.expected)


def test_large_scores_do_not_overflow() -> None:
    case = Case([70, 9], scale=40.0, seed=9)
    assert case.expected.isfinite().all()
    for num_splits in (1, 3):
        assert_close(case.run(num_splits), case.expected, limit=1e-4)  # scores of 1000 are known to 6e-5


def test_only_padded_rows() -> None:
    case = Case([0, 0, 0])
    for num_splits in (1, 2):
        assert not case.run(num_splits).any()


def test_no_rows() -> None:
    case = Case([5])
    batch = case.batch
    out = decode_attention(case.q[:0], batch.pool, batch.block_tables[:0], batch.kv_lens[:0], num_sms=8)
    assert out.shape == (0, 6, 64)


def test_output_rows_may_lie_apart() -> None:
    case = Case([5, 50])
    wide = torch.full((2, 2, 6, 64), torch.nan)
    for num_splits in (1, 2):
        out = wide[:, 0]
        decode_attention(
            case.q,
            case.batch.pool,
            case.batch.block_tables,
            case.batch.kv_lens,
            num_sms=8,
            num_splits=num_splits,
            out=out,
            workspace=poisoned_workspace(case, num_splits),
            config=SMALL,
        )
        assert_close(out, case.expected)
        assert wide[:, 1].isnan().all()
        out.fill_(torch.nan)


def test_one_workspace_serves_smaller_batches() -> None:
    """As captured graphs of several batch sizes share it, without clearing."""
    workspace = poisoned_workspace(Case([1]), 4, batch=6)
    for lengths, num_splits in (([90, 3, 0, 40, 41, 7], 4), ([5, 120], 6), ([64], 24), ([1, 2, 3], 2)):
        case = Case(lengths, seed=len(lengths))
        assert_close(attend(case, workspace, num_splits), case.expected)
        assert not workspace.counters.any()


@pytest.mark.parametrize("has_workspace", [False, True])
def test_without_a_workspace_nothing_is_split(has_workspace: bool) -> None:
    case = Case([300] * 2, kv_heads=1)
    batch, out = case.batch, torch.empty_like(case.q)
    workspace = poisoned_workspace(case, 40) if has_workspace else None
    arguments = (case.q, batch.pool, batch.block_tables, batch.kv_lens, 0.1, out, 132, None, workspace)
    (launch,) = launches(*arguments, SMALL, False, False)
    assert (launch.num_programs > 2) is has_workspace


@triton.jit  # type: ignore[untyped-decorator]
def _share_out_kernel(kv_lens_ptr, splits_ptr, batch, num_items, tile: tl.constexpr, pad: tl.constexpr):  # type: ignore[no-untyped-def]
    splits = share_out(kv_lens_ptr, batch, num_items, tile, pad)
    tl.store(splits_ptr + tl.arange(0, pad), splits)


def smallest_chunk(tiles: Sequence[int], num_items: int) -> int:
    return next(chunk for chunk in range(1, 10**6) if sum(-(-t // chunk) for t in tiles) <= num_items)


def shares(kv_lens: Sequence[int], num_items: int, tile: int) -> list[int]:
    """Slow twin of `share_out`."""
    tiles = [max(1, -(-kv_len // tile)) for kv_len in kv_lens]
    chunk = smallest_chunk(tiles, num_items)
    return [-(-t // chunk) for t in tiles]


@each_seed(range(25))
def test_items_are_shared_out_as_evenly_as_they_can(seed: int) -> None:
    rng = random.Random(seed)
    batch, num_splits, tile = rng.randint(1, 200), rng.randint(2, 20), rng.choice([16, 64, 128])
    longest = rng.choice([1, 100, 5000, 131072])
    lengths = [rng.choice([0, longest, rng.randint(0, longest)]) for _ in range(batch)]
    pad = batch_pad(batch)
    splits = torch.full((pad,), -1, dtype=torch.int32)
    kv_lens = torch.tensor([*lengths, *[10**6] * 3], dtype=torch.int32)  # what stands behind is not read
    _share_out_kernel[(1,)](kv_lens, splits, batch, batch * num_splits, tile=tile, pad=pad)
    assert splits[batch:].eq(0).all()
    assert splits[:batch].tolist() == shares(lengths, batch * num_splits, tile)


def makespan(kv_lens: Sequence[int], kv_heads: int, num_splits: int, programs: int, tile: int = 64) -> int:
    """Tiles of time until the last program ends: the items in grid order, each to the first free place."""
    tiles = [-(-kv_len // tile) for kv_len in kv_lens]
    counts = [1] * len(tiles) if num_splits == 1 else shares(kv_lens, len(tiles) * num_splits, tile)
    places = [0] * programs
    for total, count in zip(tiles, counts, strict=True):
        for split in range(count):
            work = (split + 1) * total // count - split * total // count
            for _ in range(kv_heads):
                heapq.heapreplace(places, places[0] + work + 1)
    return max(places) + (num_splits > 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 17, 40, 64])
@pytest.mark.parametrize("num_sms", [16, 48, 132])
def test_chosen_splits_against_brute_force(batch: int, num_sms: int) -> None:
    """No number of splits is a quarter faster than the chosen one, apart from one tile of rounding; for even
    batches and, on average over them, for ragged ones. A context may be far shorter than the bound."""
    rng = random.Random(batch * num_sms)
    for kv_heads in (1, 8):
        for context in (500, 8000):
            chosen = choose_num_splits(batch, kv_heads, context, num_sms, ctas_per_sm=2)
            even = [[context] * batch]
            ragged = [[rng.randint(1, context) for _ in range(batch)] for _ in range(3)]
            skewed = [[1 + int(context * rng.random() ** 4) for _ in range(batch)] for _ in range(3)]
            for batches in (even, ragged, skewed):
                times = {
                    num_splits: sum(
                        makespan(lengths, kv_heads, num_splits, 2 * num_sms) for lengths in batches
                    )
                    for num_splits in {*range(1, 9), 12, 16, 24, 32, 64, chosen}
                }
                best = min(times.values())
                assert times[chosen] <= 1.25 * best + len(batches), (kv_heads, context, chosen, times)


def test_splits_fill_a_lane_and_stop_there() -> None:
    assert choose_num_splits(1, 8, 131072, 132, ctas_per_sm=2) == 33, "8 heads x 33 = 264 programs"
    assert choose_num_splits(1, 8, 131072, 40, ctas_per_sm=2) == 10
    assert choose_num_splits(1, 8, 64, 132) == 1, "one tile cannot be split"
    assert choose_num_splits(1, 1, 640, 132) == 10, "no more splits than tiles"
    assert choose_num_splits(512, 8, 4096, 132) > 1, "a ragged batch can be evened out"


def test_splits_are_positive_and_bounded_for_any_arguments() -> None:
    rng = random.Random(1)
    for _ in range(300):
        batch, kv_heads, num_sms = rng.randint(1, 600), rng.randint(1, 64), rng.randint(1, 148)
        context, tile = rng.randint(0, 200_000), rng.choice([16, 64, 128])
        chosen = choose_num_splits(batch, kv_heads, context, num_sms, tile=tile, ctas_per_sm=2)
        assert 1 <= chosen <= max(1, -(-context // tile))
        assert chosen <= 2 or batch * kv_heads * (chosen - 1) < 4 * 2 * num_sms


def test_a_lanes_workspace_holds_every_choice() -> None:
    """Of any batch up to the largest, on any part of the SMs, with any configuration there is."""
    rng = random.Random(2)
    for _ in range(2000):
        batch, kv_heads, num_sms = rng.randint(1, 300), rng.randint(1, 16), rng.randint(1, 148)
        rows, sms, programs = rng.randint(1, batch), rng.randint(1, num_sms), rng.choice((1, 2, 3))
        chosen = choose_num_splits(rows, kv_heads, rng.randint(0, 9000), sms, ctas_per_sm=programs)
        assert rows * chosen <= most_items(batch, kv_heads, num_sms)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_chosen_configurations_are_candidates(arch: int, head_dim: int) -> None:
    every = list(candidates(arch=arch, head_dim=head_dim))
    assert len(set(every)) == len(every)
    for num_sms in (8, 16, 40, 48, 80, 132):
        assert choose(arch=arch, head_dim=head_dim, num_sms=num_sms) in every


@pytest.mark.soak
def test_chosen_configurations_occupy_an_sm_as_stated(tmp_path: Path) -> None:
    """By shared memory (and the driver's KiB) and by registers, as compiled ahead of time."""
    report = tmp_path / "report.json"
    command = [sys.executable, "scripts/kernel_report.py", "--op", "decode_attention", "--workers", "1"]
    paths = os.pathsep.join(["kernels", ".", os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    del environment["TRITON_INTERPRET"]
    subprocess.run([*command, "--json", str(report)], cwd=REPOSITORY, env=environment, check=True)
    compiled = {(facts["name"], facts["arch"]): facts for facts in json.loads(report.read_text())}
    for head_dim, arch, num_sms in itertools.product((64, 128, 256), (80, 90), (24, 40, 64, 132)):
        config = choose(arch=arch, head_dim=head_dim, num_sms=num_sms)
        name = f"decode_attention/bf16/d{head_dim}/g4/b16/tile{config.tile}x{config.buffers}/split128"
        facts = compiled[name, arch]
        shared = config.ctas_per_sm * (facts["shared_bytes"] + 1024)
        registers = config.ctas_per_sm * config.num_warps * 32 * -(-facts["registers"] // 8) * 8
        assert shared <= SM_SHARED_KIB[arch] * 1024, (config, arch, shared)
        assert registers <= 2**16, (config, arch, registers)


def test_bytes_in_flight_saturate_memory_from_32_sms_up() -> None:
    """Little's law as in configs.py: 4.8 TB/s x 0.9 x 800 ns, while each program computes on one tile."""
    for num_sms in (32, 40, 48, 64, 132):
        config = choose(arch=90, head_dim=128, num_sms=num_sms)
        tile_bytes = config.tile * 128 * 2 * 2
        in_flight = num_sms * config.ctas_per_sm * (config.buffers - 1) * tile_bytes
        assert in_flight > 4.8e12 * 0.9 * 800e-9


def test_refusals() -> None:
    case = Case([5, 50])
    q, pool, tables, lens = case.q, case.batch.pool, case.batch.block_tables, case.batch.kv_lens

    def refused(word: str, *arguments: Tensor, **options: object) -> None:
        with pytest.raises(SemipdError, match=word) as caught:
            decode_attention(*arguments, **{"num_sms": 8, **options})  # type: ignore[arg-type]
        assert caught.value.code == "unsupported_kernel"

    refused("D in", q[..., :32], pool, tables, lens)
    refused("float64", q.double(), pool.double(), tables, lens)
    refused("heads of a row contiguous", randn((2, 64, 6), torch.float32, seed=1).mT, pool, tables, lens)
    refused("contiguous torch.float32 pool", q, pool.half(), tables, lens)
    refused("contiguous torch.float32 pool", q, pool[:, ::2], tables, lens)
    refused("contiguous torch.float32 pool", q, pool[0], tables, lens)
    refused("power of two", q, torch.zeros(2, 3, 2, 24, 64), tables, lens)
    refused("power of two", q, torch.zeros(2, 3, 2, 8, 64), tables, lens)
    refused("whole query heads", q[:, :5], pool, tables, lens)
    refused("whole query heads", torch.zeros(2, 65 * 2, 64), pool, tables, lens)
    refused("whole query heads", q[:, :0], pool, tables, lens)
    refused("block_tables", q, pool, tables.long(), lens)
    refused("block_tables", q, pool, tables[:1], lens)
    refused("block_tables", q, pool, tables.T.contiguous().T, lens)
    refused("kv_lens", q, pool, tables, lens.long())
    refused("kv_lens", q, pool, tables, lens[:1])
    refused("one SM", q, pool, tables, lens, num_sms=0)
    refused("one split", q, pool, tables, lens, num_splits=0)
    refused("writes", q, pool, tables, lens, out=torch.empty(2, 6, 64, dtype=torch.half))
    refused("writes", q, pool, tables, lens, out=torch.empty(3, 6, 64))
    refused("writes", q, pool, tables, lens, out=torch.empty(2, 64, 6).mT)
    refused("for TMA", q, pool, tables, lens, tma=True)
    refused("for TMA", q.half(), pool.half(), tables, lens, tma=True)
    refused("workspace", q, pool, tables, lens, num_splits=2)
    for small in (
        decode_workspace(2, 6, 2, 64, 7, CPU),
        decode_workspace(1, 6, 2, 64, 8, CPU),
        decode_workspace(2, 4, 2, 64, 8, CPU),
        decode_workspace(2, 6, 1, 64, 8, CPU),
        decode_workspace(2, 6, 2, 128, 8, CPU),
    ):
        refused("workspace", q, pool, tables, lens, num_splits=4, workspace=small)
