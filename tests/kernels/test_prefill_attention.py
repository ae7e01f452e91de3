"""Prefill attention and its reference against a slow oracle; the plan against a recount."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from semipd_kernels.prefill_attention import (
    PaddedSize,
    PrefillConfig,
    PrefillPlan,
    plan_prefill,
    prefill_attention,
)
from semipd_kernels.prefill_attention.configs import candidates, choose, choose_fp32, choose_narrow
from semipd_kernels.prefill_attention.reference import prefill_attention_reference
from support.interpreter import multiply_bf16
from support.kernels import (
    DTYPES,
    Guarded,
    PagedBatch,
    assert_close,
    oracle_attention,
    paged_batch,
    randn,
    starts_of,
)
from support.seeds import each_seed
from torch import Tensor

from semipd.core.errors import SemipdError


@pytest.fixture(autouse=True)
def _multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_bf16(monkeypatch)


SMALL = PrefillConfig(block_m=16, block_n=32, num_warps=4, num_stages=2, ctas_per_sm=1)


def queries(num_rows: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A view of rows that also hold keys and values, as the projection leaves them."""
    wide = torch.full((num_rows, heads + 2, head_dim), torch.nan, dtype=dtype)
    wide[:, :heads] = randn((num_rows, heads, head_dim), dtype, seed=seed)
    return wide[:, :heads]


def plan_for(
    query_lens: Sequence[int], batch: PagedBatch, q: Tensor, config: PrefillConfig | None
) -> PrefillPlan:
    return plan_prefill(
        query_lens,
        batch.kv_lens.tolist(),
        num_heads=q.shape[1],
        num_kv_heads=batch.kv_heads,
        head_dim=q.shape[2],
        dtype=q.dtype,
        num_sms=3,
        config=config,
    )


def attend(
    query_lens: Sequence[int],
    batch: PagedBatch,
    q: Tensor,
    *,
    num_sms: int = 3,
    config: PrefillConfig | None = SMALL,
    scale: float | None = None,
) -> Tensor:
    out = Guarded(q.shape, q.dtype)
    plan = plan_for(query_lens, batch, q, config)
    starts = starts_of(query_lens)
    result = prefill_attention(
        q,
        batch.pool,
        batch.block_tables,
        starts,
        batch.kv_lens,
        out.tensor,
        plan,
        num_sms=num_sms,
        scale=scale,
    )
    assert result is out.tensor
    out.check()
    assert not plan.items[0].any(), "counters must be ready for the next layer"
    return result


def check(
    query_lens: Sequence[int],
    contexts: Sequence[int],
    *,
    group: int = 2,
    kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    block_size: int = 16,
    config: PrefillConfig | None = SMALL,
    num_sms: int = 3,
    seed: int = 0,
) -> None:
    kv_lens = [length + context for length, context in zip(query_lens, contexts, strict=True)]
    batch = paged_batch(
        kv_lens, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, seed=seed, block_size=block_size
    )
    q = queries(sum(query_lens), kv_heads * group, head_dim, dtype, seed)
    out = attend(query_lens, batch, q, config=config, num_sms=num_sms)
    assert_close(out, oracle_attention(q, batch, query_lens=query_lens, scale=head_dim**-0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_ragged_chunks_with_prior_context(head_dim: int, dtype: torch.dtype) -> None:
    check([5, 1, 18, 3], [0, 40, 13, 64], head_dim=head_dim, dtype=dtype, seed=head_dim)


@pytest.mark.parametrize("group", [1, 3, 5, 7, 8, 12, 16])
def test_groups_need_not_be_powers_of_two(group: int) -> None:
    check([1, 9, 4], [31, 0, 17], group=group, kv_heads=1 if group > 8 else 2, seed=group)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_tiles_of_keys_and_blocks_of_any_ratio(block_size: int) -> None:
    check([20, 1], [50, 140], group=3, kv_heads=1, block_size=block_size, seed=block_size)


@pytest.mark.parametrize("query_len", [1, 2, 15, 16, 17, 32, 33])
def test_around_the_edges_of_tiles(query_len: int) -> None:
    check([query_len] * 3, [0, 31, 32], group=1, kv_heads=1, seed=query_len)


def test_single_rows_only() -> None:
    check([1] * 6, [0, 1, 15, 16, 31, 100], group=4, seed=8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_configurations(dtype: torch.dtype) -> None:
    check([70, 1], [80, 9], group=2, kv_heads=1, head_dim=128, dtype=dtype, config=None, seed=9)


@pytest.mark.parametrize("num_sms", [1, 2, 5, 1000])
def test_the_result_does_not_depend_on_the_number_of_sms(num_sms: int) -> None:
    batch = paged_batch([40, 33, 7], kv_heads=2, head_dim=64, dtype=torch.float16, seed=10)
    q = queries(33, 6, 64, torch.float16, seed=10)
    out = attend([20, 12, 1], batch, q, num_sms=num_sms)
    assert torch.equal(out, attend([20, 12, 1], batch, q, num_sms=3))


def test_items_in_any_order_give_the_same_bits() -> None:
    batch = paged_batch([40, 33], kv_heads=2, head_dim=64, dtype=torch.float16, seed=11)
    q, starts = queries(45, 6, 64, torch.float16, seed=11), starts_of([20, 25])
    plan = plan_for([20, 25], batch, q, SMALL)
    backwards = replace(plan, items=torch.cat((plan.items[:2], plan.items[2:].flip(0))))
    first, second = torch.empty(2, 45, 6, 64, dtype=torch.float16)
    prefill_attention(q, batch.pool, batch.block_tables, starts, batch.kv_lens, first, plan, num_sms=2)
    prefill_attention(q, batch.pool, batch.block_tables, starts, batch.kv_lens, second, backwards, num_sms=2)
    assert torch.equal(first, second)


def test_one_plan_serves_every_layer() -> None:
    batches = [paged_batch([50, 9], kv_heads=2, head_dim=64, dtype=torch.float32, seed=17) for _ in range(3)]
    q, starts = queries(25, 6, 64, torch.float32, seed=17), starts_of([20, 5])
    plan = plan_for([20, 5], batches[0], q, SMALL)
    for batch, num_sms in zip(batches, (4, 1, 2), strict=True):
        out = Guarded(q.shape, q.dtype)
        prefill_attention(
            q, batch.pool, batch.block_tables, starts, batch.kv_lens, out.tensor, plan, num_sms=num_sms
        )
        out.check()
        assert_close(out.tensor, oracle_attention(q, batch, query_lens=[20, 5], scale=0.125))


def test_large_scores_and_own_scale() -> None:
    """Scores of several hundred: only a running maximum keeps them finite."""
    batch = paged_batch([50, 20], kv_heads=1, head_dim=64, dtype=torch.float32, seed=12)
    q = queries(29, 2, 64, torch.float32, seed=12).mul_(40)
    out = attend([9, 20], batch, q, scale=0.5)
    # a score of 500 in fp32 is known to 3e-5
    assert_close(out, oracle_attention(q, batch, query_lens=[9, 20], scale=0.5), limit=1e-3)


def test_rows_of_the_output_may_lie_apart() -> None:
    batch = paged_batch([30], kv_heads=1, head_dim=64, dtype=torch.float32, seed=13)
    q = queries(11, 3, 64, torch.float32, seed=13)
    wide = torch.full((11, 5, 64), torch.nan)
    plan = plan_for([11], batch, q, SMALL)
    starts = starts_of([11])
    prefill_attention(q, batch.pool, batch.block_tables, starts, batch.kv_lens, wide[:, 1:4], plan, num_sms=2)
    assert wide[:, 0].isnan().all()
    assert wide[:, 4].isnan().all()
    assert_close(wide[:, 1:4], oracle_attention(q, batch, query_lens=[11], scale=0.125))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 64])
def test_reference_against_the_oracle(block_size: int, dtype: torch.dtype) -> None:
    query_lens = [6, 1, 20]
    batch = paged_batch([6, 45, 53], kv_heads=2, head_dim=64, dtype=dtype, seed=14, block_size=block_size)
    q, out = queries(27, 6, 64, dtype, seed=14), Guarded((27, 6, 64), dtype)
    prefill_attention_reference(
        q, batch.pool, batch.block_tables, starts_of(query_lens), batch.kv_lens, out.tensor, 0.125
    )
    out.check()
    assert_close(out.tensor, oracle_attention(q, batch, query_lens=query_lens, scale=0.125))


def test_plan_covers_every_row_once_longest_first() -> None:
    rng = random.Random(15)
    for _ in range(200):
        group, num_seqs = rng.randint(1, 16), rng.randint(1, 6)
        query_lens = [rng.choice([1, rng.randint(1, 90)]) for _ in range(num_seqs)]
        kv_lens = [length + rng.choice([0, rng.randint(0, 300)]) for length in query_lens]
        config = PrefillConfig(rng.choice([16, 64, 128]), rng.choice([16, 64]), 4, 2, 1)
        plan = plan_prefill(
            query_lens,
            kv_lens,
            num_heads=2 * group,
            num_kv_heads=2,
            head_dim=64,
            dtype=torch.bfloat16,
            num_sms=8,
            config=config,
        )
        covered: list[tuple[int, int]] = []
        costs = []
        for seq, first_row in plan.items[2:].tolist():
            rows = range(first_row, min(first_row + config.block_m, query_lens[seq] * group))
            covered += [(seq, row) for row in rows]
            newest = kv_lens[seq] - query_lens[seq] + rows[-1] // group
            costs.append(newest // config.block_n + 1)
        expected = [(seq, row) for seq in range(num_seqs) for row in range(query_lens[seq] * group)]
        assert sorted(covered) == expected
        assert costs == sorted(costs, reverse=True)
        assert (plan.num_seqs, plan.num_rows) == (num_seqs, sum(query_lens))


def test_a_padded_pass_computes_the_step_and_nothing_else() -> None:
    """Captured for 30 rows of 5 sequences, replayed for 13 rows of 2: what a launch is given beside that is
    taken up by nobody."""
    lens, query_lens = [40, 9, 0, 0, 0], [12, 1, 0, 0, 0]
    batch = paged_batch(lens, kv_heads=2, head_dim=64, dtype=torch.float32, seed=18)
    q, out = queries(30, 6, 64, torch.float32, seed=18), torch.full((30, 6, 64), torch.nan)
    plan = plan_prefill(
        query_lens[:2],
        lens[:2],
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        dtype=q.dtype,
        num_sms=3,
        config=SMALL,
        padded=PaddedSize(30, 5),
    )
    num_items = int(plan.items[1, 0])
    assert len(plan.items) - 2 > num_items == 4
    plan.items[2 + num_items :] = 10**6
    starts = starts_of(query_lens)
    for _ in range(2):
        prefill_attention(q, batch.pool, batch.block_tables, starts, batch.kv_lens, out, plan, num_sms=2)
    assert_close(out[:13], oracle_attention(q[:13], batch, query_lens=query_lens, scale=0.125))
    assert out[13:].isnan().all()


def test_plans_of_one_size_differ_in_their_items_only() -> None:
    rng, size = random.Random(19), PaddedSize(300, 7)
    kinds = set()
    for _ in range(100):
        cuts = sorted(rng.sample(range(1, 300), rng.randint(1, 7)))
        query_lens = [stop - start for start, stop in pairwise([0, *cuts])]
        plan = plan_prefill(
            query_lens,
            [length + rng.randrange(50) for length in query_lens],
            num_heads=8,
            num_kv_heads=2,
            head_dim=128,
            dtype=torch.bfloat16,
            num_sms=40,
            padded=size,
        )
        kinds.add((plan.config, plan.items.shape, plan.num_rows, plan.num_seqs))
        assert plan.items[1, 0] == sum(-(-length * 4 // plan.config.block_m) for length in query_lens)
    assert len(kinds) == 1


def test_small_steps_are_cut_finer() -> None:
    def cut(num_tokens: int, num_sms: int) -> PrefillConfig:
        return plan_prefill(
            [num_tokens],
            [num_tokens],
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            dtype=torch.bfloat16,
            num_sms=num_sms,
        ).config

    assert cut(2048, 132) == choose(arch=90, head_dim=128, num_sms=132)
    assert cut(256, 132) == choose_narrow(arch=90, head_dim=128)
    assert cut(256, 48) == choose(arch=90, head_dim=128, num_sms=48)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_constants_are_among_the_candidates(head_dim: int) -> None:
    for arch in (80, 90):
        every = list(candidates(arch=arch, head_dim=head_dim))
        assert choose(arch=arch, head_dim=head_dim, num_sms=132) in every
        assert choose_narrow(arch=arch, head_dim=head_dim) in every
        assert len(set(every)) == len(every)
    assert choose_fp32(head_dim=head_dim).block_m >= 16


def test_what_is_not_supported_is_refused() -> None:
    batch = paged_batch([9], kv_heads=2, head_dim=64, dtype=torch.float32, seed=16)
    q, starts = queries(4, 6, 64, torch.float32, seed=16), starts_of([4])
    plan, out = plan_for([4], batch, q, SMALL), torch.empty(4, 6, 64)
    tables, lens, pool = batch.block_tables, batch.kv_lens, batch.pool

    def refused(match: str, *arguments: object, num_sms: int = 1, scale: float | None = None) -> None:
        with pytest.raises(SemipdError, match=match) as refusal:
            prefill_attention(*arguments, num_sms=num_sms, scale=scale)  # type: ignore[arg-type]
        assert refusal.value.code == "unsupported_kernel"

    refused("D in", q[..., :32], pool, tables, starts, lens, out, plan)
    refused("float64", q.double(), pool, tables, starts, lens, out, plan)
    refused("one layer", q, pool[0], tables, starts, lens, out, plan)
    refused("contiguous pool", q, pool.mT.contiguous().mT, tables, starts, lens, out, plan)
    refused("bfloat16", q, pool.bfloat16(), tables, starts, lens, out, plan)
    refused("power of two", q, pool[:, :, :, :12].contiguous(), tables, starts, lens, out, plan)
    refused("power of two", q, pool[:, :, :, :8].contiguous(), tables, starts, lens, out, plan)
    refused("2 kv heads; got 5", q[:, :5], pool, tables, starts, lens, out, plan)
    refused("out like q", q, pool, tables, starts, lens, out[:3], plan)
    refused("out has strides", q, pool, tables, starts, lens, torch.empty(4, 64, 6).mT, plan)
    refused("query_starts", q, pool, tables, starts.long(), lens, out, plan)
    refused("kv_lens", q, pool, tables, starts, lens[None], out, plan)
    refused("block_tables", q, pool, tables.long(), starts, lens, out, plan)
    refused("plan of this step", q, pool, tables, starts, lens, out, replace(plan, num_rows=5))
    refused("at least one SM", q, pool, tables, starts, lens, out, plan, num_sms=0)
    refused("scale above 0", q, pool, tables, starts, lens, out, plan, scale=0.0)


@pytest.mark.soak
@each_seed(range(60))
def test_random_steps(seed: int) -> None:
    rng = random.Random(seed)
    query_lens = [rng.choice([1, rng.randint(1, 40), rng.randint(1, 150)]) for _ in range(rng.randint(1, 5))]
    check(
        query_lens,
        [rng.choice([0, rng.randint(0, 50), rng.randint(0, 300)]) for _ in query_lens],
        group=rng.randint(1, 16),
        kv_heads=rng.randint(1, 3),
        head_dim=rng.choice([64, 128, 256]),
        dtype=rng.choice(DTYPES),
        block_size=rng.choice([16, 32, 64, 128]),
        config=rng.choice([None, SMALL, PrefillConfig(64, 64, 4, 2, 1), PrefillConfig(32, 16, 4, 2, 1)]),
        num_sms=rng.choice([1, 3, 7, 132]),
        seed=seed,
    )
