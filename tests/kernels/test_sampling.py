"""Device sampling against the plain sampler, over many seeds and parameter mixes.

Both compute in fp32 with their own exp and sums, so a draw may differ where a decision is very close.
Each token must then be one that the definition yields when top-p, min-p and the uniform move by TOLERANCE.
"""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from semipd_kernels.sampling import SamplingWorkspace, sample, shape
from semipd_kernels.sampling.arithmetic.kernel import threshold_of, uniform_bits
from support.sampling_rows import CPU, Batch, random_logits, random_row, stages_of
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.sampling.batch import SamplingRow
from semipd.sampling.history import FORBIDDEN, PROMPT_FLAG, TokenHistory
from semipd.sampling.parameters import Column
from semipd.sampling.philox import seed_words, uniforms
from semipd.sampling.stages import RowSet, edits_of

TOLERANCE = 1e-5
"""Of probabilities: how far a decision may be off. DESIGN section 3 allows 1e-4."""
SMALL_TILE = 128


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TILE", SMALL_TILE)


def greedy_row(**changes: object) -> SamplingRow:
    params = replace(SamplingParams(max_tokens=9, seed=1, temperature=0.0), **changes)  # type: ignore[arg-type]
    return SamplingRow(params, [1, 2], 2)


def acceptable(adjusted: Tensor, row: SamplingRow) -> set[int]:
    """Tokens of the definition, in double precision after the fp32 distances that both samplers share."""
    p = row.params
    distance = ((adjusted.max() - adjusted) / max(p.temperature, 1e-38)).double()
    weights = torch.exp(-distance)
    if 0 < p.top_k < len(weights):
        weights[distance > distance.sort().values[p.top_k - 1]] = 0.0
    uniform = float(uniforms(seed_words([p.seed], CPU), torch.tensor([len(row.token_ids)])))
    order = distance.argsort(stable=True)
    before = (weights[order].cumsum(0) - weights[order]) / weights.sum()
    found = set()
    for shifts in itertools.product((-TOLERANCE, 0.0, TOLERANCE), repeat=3):
        kept = weights.clone()
        if p.top_p < 1.0:
            kept[order[before >= max(p.top_p + shifts[0], 0.0)]] = 0.0
        kept[weights < p.min_p * (1.0 + shifts[1])] = 0.0
        if not kept.any():
            continue
        cdf = kept.cumsum(0) / kept.sum()
        token = int((cdf <= min(max(uniform + shifts[2], 0.0), 1 - 1e-12)).sum())
        found.add(min(token, len(cdf) - 1))
    return found


def compare(actual: Tensor, expected: Tensor, batch: Batch, logits: Tensor) -> int:
    """Number of rows that differ; each of them too close to call."""
    differing = (actual != expected).nonzero().squeeze(1).tolist()
    for i in differing:
        adjusted = batch.adjusted(logits)[i]
        both = {int(actual[i]), int(expected[i])}
        assert not batch.rows[i].params.greedy, (i, both)
        assert both <= acceptable(adjusted, batch.rows[i]), (i, both, batch.rows[i])
    return len(differing)


def check_mixes(rng: random.Random, vocab_sizes: list[int], rounds: int) -> None:
    compared = close = 0
    for _ in range(rounds):
        vocab_size = rng.choice(vocab_sizes)
        batch = Batch([random_row(rng, vocab_size) for _ in range(rng.randrange(1, 6))], vocab_size)
        logits = random_logits(rng, len(batch.rows), vocab_size)
        logits = logits.bfloat16() if rng.random() < 0.2 else logits
        before, counts = logits.clone(), batch.counts.clone()
        actual = batch.sample(logits)
        assert torch.equal(logits, before)
        assert torch.equal(batch.counts, counts)
        close += compare(actual, batch.plain(logits), batch, logits)
        compare(actual, batch.reference(logits), batch, logits)
        compared += len(actual)
    print(f"vocabularies {vocab_sizes}: {compared} tokens compared, {close} too close to call")
    assert close <= max(1, compared // 200)


@pytest.mark.usefixtures("small_tiles")
def test_kernels_match_the_plain_sampler() -> None:
    check_mixes(random.Random(1), [1, 7, 61, 128, 300], 18)


def test_kernels_match_the_plain_sampler_beyond_a_full_tile() -> None:
    check_mixes(random.Random(2), [shape.TILE - 1, shape.TILE + 33], 5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tile", [128, 4096])
def test_many_more_mixes(seed: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TILE", tile)
    check_mixes(random.Random(1000 + seed), [2, 31, 257, 1000], 40)


@pytest.mark.soak
def test_the_largest_vocabularies() -> None:
    check_mixes(random.Random(3), [50257, 151936, 262144], 12)


@pytest.mark.parametrize(("vocab_size", "rounds"), [(7, 60), (61, 60), (2500, 20)])
def test_reference_matches_the_plain_sampler(vocab_size: int, rounds: int) -> None:
    rng, compared, close = random.Random(vocab_size), 0, 0
    for _ in range(rounds):
        batch = Batch([random_row(rng, vocab_size) for _ in range(6)], vocab_size)
        logits = random_logits(rng, 6, vocab_size)
        close += compare(batch.reference(logits), batch.plain(logits), batch, logits)
        compared += 6
    print(f"vocabulary {vocab_size}: {compared} tokens compared, {close} too close to call")
    assert close <= max(1, compared // 200)


def test_advancing_equals_building_anew() -> None:
    rng, vocab_size = random.Random(5), 97
    batch = Batch([random_row(rng, vocab_size) for _ in range(4)], vocab_size)
    for _ in range(13):  # beyond every min_tokens
        logits = random_logits(rng, 4, vocab_size)
        tokens = batch.sample(logits)
        fresh = Batch(batch.rows, vocab_size)
        compare(tokens, fresh.plain(logits), batch, logits)
        assert torch.equal(batch.params.positions, fresh.params.positions)
        if batch.stages.counted is not None:
            slots = batch.stages.counted.pick(batch.slots)
            assert torch.equal(batch.counts[slots], fresh.counts[slots])
            batch.history.advance(slots, batch.stages.counted.pick(tokens))
        batch.columns[Column.POSITION] += 1
        batch.rows = [
            row._replace(token_ids=[*row.token_ids, token])
            for row, token in zip(batch.rows, tokens.tolist(), strict=True)
        ]


def test_a_row_depends_on_itself_alone_and_not_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, vocab_size = random.Random(6), 200
    rows = [random_row(rng, vocab_size) for _ in range(6)]
    logits = random_logits(rng, 6, vocab_size)
    together = Batch(rows, vocab_size).sample(logits)
    for tile in (64, 256):
        monkeypatch.setattr(shape, "TILE", tile)
        for i, row in enumerate(rows):
            alone = Batch([row], vocab_size).sample(logits[i : i + 1])
            assert int(alone) == int(together[i])
        order = rng.sample(range(6), 3)
        some = Batch([rows[i] for i in order], vocab_size).sample(logits[order])
        assert torch.equal(some, together[order])


@pytest.mark.usefixtures("small_tiles")
def test_ties_across_tiles_rank_by_id() -> None:
    """Equal weights are exact in both samplers, so every token must be the same."""
    rng, vocab_size = random.Random(7), 320
    logits = torch.zeros(8, vocab_size)
    logits[1:3, rng.sample(range(vocab_size), 100)] = 3.0
    logits[3:5, 200:] = -math.inf
    logits[5:] = (torch.rand(3, vocab_size, generator=torch.Generator().manual_seed(0)) * 4).round()
    for seed in range(2):
        rows = [
            SamplingRow(SamplingParams(9, seed=seed * 8 + i, top_p=top_p, top_k=top_k), [1], 1)
            for i, (top_p, top_k) in enumerate(
                [(0.5, 0), (0.25, 0), (0.9, 40), (0.015, 0), (0.3, 7), (0.5, 300), (0.75, 1), (0.05, 0)]
            )
        ]
        batch = Batch(rows, vocab_size)
        assert torch.equal(batch.sample(logits), batch.plain(logits))


@pytest.mark.usefixtures("small_tiles")
def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.full((4, 300), -1.0)
    logits[0] = 0.0
    logits[1, [70, 299]] = 1.0
    logits[2, [298, 299]] = 2.0
    logits[3, 200], logits[3, 100] = 0.0, -0.0
    batch = Batch([greedy_row()] * 4, 300)
    assert batch.stages.drawn is None
    assert batch.sample(logits).tolist() == [0, 70, 298, 100]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 100.0])
def test_extreme_temperatures_and_logits(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 90, generator=generator) * (1e30 if temperature < 1 else 10.0)
    rows = [
        SamplingRow(SamplingParams(1, seed=s, temperature=temperature, top_p=0.9), [1], 1) for s in range(6)
    ]
    batch = Batch(rows, 90)
    assert compare(batch.sample(logits), batch.plain(logits), batch, logits) == 0
    if temperature < 1:
        assert torch.equal(batch.sample(logits), logits.argmax(dim=-1))


def test_zeros_of_either_sign_are_equal() -> None:
    """The largest logit of every row is a zero, of the sign of most of the zeros or of the other."""
    random_bits = torch.rand(8, 31, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(8, 31).where(random_bits < torch.tensor([0.1, 0.9] * 4)[:, None], -0.0)
    logits = torch.cat((zeros, torch.full((8, 5), -2.0)), dim=1)
    rows = [
        SamplingRow(SamplingParams(1, seed=seed, top_p=1.0 - seed % 2 * 0.45, top_k=seed % 3 * 2), [1], 1)
        for seed in range(8)
    ]
    batch = Batch(rows, 36)
    assert batch.sample(logits).tolist() == batch.plain(logits).tolist()


def test_a_uniform_of_zero_draws_no_impossible_token() -> None:
    batch = Batch([SamplingRow(SamplingParams(max_tokens=1, seed=6786339, top_k=2), [1], 1)], 4)
    assert uniforms(seed_words([6786339], CPU), torch.tensor([1])) == 0.0
    assert batch.sample(torch.tensor([[0.0, 1.0, 3.0, 3.0]])).tolist() == [2]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_without_a_finite_largest_logit_give_minus_one(temperature: float) -> None:
    params = SamplingParams(9, seed=3, temperature=temperature, top_p=0.9, top_k=30)
    masked = replace(params, stop_token_ids=tuple(range(150)), min_tokens=1)
    rows = [SamplingRow(params, [1], 1)] * 4 + [SamplingRow(masked, [1], 1)]
    logits = random_logits(random.Random(8), 5, 150).clamp_min(-9.0)
    logits[0, 149], logits[1, 3], logits[2] = math.nan, math.inf, -math.inf
    batch = Batch(rows, 150)
    actual = batch.sample(logits)
    assert actual.tolist() == batch.reference(logits).tolist() == batch.plain(logits).tolist()
    assert actual.tolist()[:3] == [-1, -1, -1]
    assert actual[3] >= 0
    assert actual[4] == -1


@pytest.mark.usefixtures("small_tiles")
def test_more_edits_than_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "EDITS", 16)
    rng = random.Random(9)
    rows = []
    for seed in range(3):
        biases = tuple((token, rng.uniform(-9, 9)) for token in rng.sample(range(200), 70))
        stops = tuple(rng.sample(range(200), 40))
        params = SamplingParams(9, seed, logit_bias=biases, stop_token_ids=stops, min_tokens=2)
        rows.append(SamplingRow(replace(params, repetition_penalty=1.3), [4, 5, 6], 2))
    batch, logits = Batch(rows, 200), random_logits(rng, 3, 200)
    batch.sample(logits)
    assert torch.equal(batch.work.adjusted[batch.slots], batch.adjusted(logits))


@pytest.mark.parametrize("filters", [0, 1, 2])
def test_launches_left_out_change_nothing(filters: int) -> None:
    rng = random.Random(10)
    rows = []
    for _ in range(6):
        row = random_row(rng, 50)
        choices: list[dict[str, Any]] = [{"top_k": 0, "top_p": 1.0}, {"top_k": 0}, {}]
        off = choices[filters]
        rows.append(row._replace(params=replace(row.params, **off)))
    batch, logits = Batch(rows, 50), random_logits(rng, 6, 50)
    assert batch.stages.filters <= (filters > 0)
    everything = replace(batch.stages, drawn=RowSet(None), filters=True)
    assert torch.equal(batch.sample(logits), batch.sample(logits, everything))


def test_stages_follow_the_parameters() -> None:
    plain = SamplingParams(max_tokens=1, seed=0)
    greedy = replace(plain, temperature=0.0, top_k=4, top_p=0.5)

    def found(*params: SamplingParams) -> tuple[bool, bool]:
        stages = stages_of([SamplingRow(p, [1], 1) for p in params], 50)
        return stages.drawn is not None, stages.filters

    assert found() == found(greedy) == (False, False)
    assert found(greedy, plain) == (True, False)
    assert found(replace(plain, top_k=3), replace(plain, top_p=0.5)) == (True, True)
    assert found(replace(plain, top_k=3, top_p=0.5)) == (True, True)


def test_output_may_be_given_and_no_rows_are_fine() -> None:
    batch, logits = Batch([greedy_row()], 20), random_logits(random.Random(11), 1, 20)
    out = torch.zeros(1, dtype=torch.int64)
    given = (batch.params, batch.stages, batch.slots, batch.counts, batch.work)
    assert sample(logits, *given, out=out) is out
    assert int(out) == int(logits.argmax())
    assert Batch([], 20).sample(logits[:0]).shape == (0,)


def test_rows_of_logits_may_be_strided() -> None:
    rng = random.Random(12)
    batch = Batch([random_row(rng, 70) for _ in range(4)], 70)
    wide = torch.full((4, 90), math.nan)
    wide[:, :70] = random_logits(rng, 4, 70)
    assert torch.equal(batch.sample(wide[:, :70]), batch.sample(wide[:, :70].contiguous()))


@triton.jit
def _uniform_kernel(seeds_ptr, positions_ptr, totals_ptr, bits_ptr, thresholds_ptr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0)
    bits = uniform_bits(tl.load(seeds_ptr + index), tl.load(positions_ptr + index))
    tl.store(bits_ptr + index, bits)
    tl.store(thresholds_ptr + index, threshold_of(bits, tl.load(totals_ptr + index)))


def test_uniforms_have_the_bits_of_the_plain_samplers() -> None:
    rng = random.Random(13)
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1, *(rng.getrandbits(64) for _ in range(40))]
    positions = [0, 1, 2**31, 2**32, 2**40 + 5, *(rng.getrandbits(20) for _ in range(40))]
    totals = [1, 2**40, 2**58, 2**62 - 1, 2**24, *(rng.getrandbits(58) for _ in range(40))]
    expected = uniforms(seed_words(seeds, CPU), torch.tensor(positions))
    signed = torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds])
    bits, thresholds = torch.empty(45, dtype=torch.int64), torch.empty(45, dtype=torch.int64)
    _uniform_kernel[(45,)](signed, torch.tensor(positions), torch.tensor(totals), bits, thresholds)
    assert torch.equal(bits.float() * 2.0**-24, expected)
    assert thresholds.tolist() == [b * t >> 24 for b, t in zip(bits.tolist(), totals, strict=True)]


def test_histories_are_counted() -> None:
    history = TokenHistory(3, 9, CPU)
    counts = history.counts.fill_(5)
    history.join(1, torch.tensor([3, 3, 4, 8, 8, 8, 3]), 3)
    assert counts[1].tolist() == [0, 0, 0, PROMPT_FLAG + 1, PROMPT_FLAG, 0, 0, 0, 3]
    assert (counts[[0, 2]] == 5).all()
    history.advance(torch.tensor([1, 2]), torch.tensor([8, 4]))
    assert counts[1].tolist() == [0, 0, 0, PROMPT_FLAG + 1, PROMPT_FLAG, 0, 0, 0, 4]
    assert (counts[0] == 5).all()
    assert counts[2].tolist() == [5, 5, 5, 5, 6, 5, 5, 5, 5]


def test_tokens_that_are_not_allowed_are_marked_beside_their_counts() -> None:
    history = TokenHistory(2, 6, CPU)
    history.join(1, torch.tensor([3, 4, 4, 0]), 1, allowed=torch.tensor([3, 4, 3]))
    assert history.counts[1].tolist() == [FORBIDDEN + 1, FORBIDDEN, FORBIDDEN, PROMPT_FLAG, 2, FORBIDDEN]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mask_hides_no_invalid_logit(bad: float) -> None:
    params = SamplingParams(9, 3, temperature=0.7, allowed_token_ids=(130, 200))
    penalised = replace(params, repetition_penalty=1e-30)
    rows = [SamplingRow(params, [1], 1), SamplingRow(params, [1], 1), SamplingRow(penalised, [1, 7], 1)]
    logits = torch.zeros(3, 300)
    logits[1, 7] = bad
    batch = Batch(rows, 300)
    actual = batch.sample(logits).tolist()
    assert actual == batch.reference(logits).tolist() == batch.plain(logits).tolist()
    assert actual[0] in (130, 200)
    assert actual[1] == -1
    assert actual[2] in (130, 200)


def test_edits_are_merged_and_rows_with_them_are_adjusted() -> None:
    params = SamplingParams(9, 0, logit_bias=((5, 1.0), (2, -3.0)), stop_token_ids=(7, 5), min_tokens=4)
    assert edits_of(params, 10, num_tokens=13) == [(2, -3.0, 0), (5, 1.0, 14), (7, 0.0, 14)]
    assert edits_of(params, 10, num_tokens=14) == [(2, -3.0, 0), (5, 1.0, 0)]
    stages = stages_of([greedy_row(), SamplingRow(params, [1] * 13, 10)], 50)
    assert stages.adjusted is not None
    assert stages.adjusted.tolist() == [1]


def refused() -> list[tuple[str, dict[str, object]]]:
    other = Batch([greedy_row()] * 2, 16)
    return [
        ("float32 or bfloat16", {"logits": torch.zeros(1, 16, dtype=torch.float16)}),
        ("float32 or bfloat16", {"logits": torch.zeros(16, 1).t()[:, ::2]}),
        ("1 to 262144 tokens", {"logits": torch.zeros(1, 262145)}),
        ("as many rows of parameters", {"rows": other.params}),
        ("needs slots", {"slots": other.slots}),
        ("counts", {"counts": torch.zeros(1, 17, dtype=torch.int32)}),
        ("counts", {"counts": torch.zeros(1, 16)}),
        ("as the workspace has", {"counts": torch.zeros(9, 16, dtype=torch.int32)}),
        ("workspace is for", {"workspace": SamplingWorkspace(0, 16, 1, CPU)}),
        ("workspace is for", {"workspace": SamplingWorkspace(1, 17, 1, CPU)}),
        ("needs out", {"out": torch.zeros(1, dtype=torch.int32)}),
    ]


@pytest.mark.parametrize(("sentence", "changes"), refused())
def test_refuses_what_it_cannot_do(sentence: str, changes: dict[str, object]) -> None:
    batch = Batch([greedy_row()], 16)
    inputs = {
        "logits": torch.zeros(1, 16),
        "rows": batch.params,
        "stages": batch.stages,
        "slots": batch.slots,
        "counts": torch.zeros(1, 16, dtype=torch.int32),
        "workspace": batch.work,
    }
    with pytest.raises(SemipdError, match=sentence) as raised:
        sample(**{**inputs, **changes})  # type: ignore[arg-type]
    assert raised.value.code == "unsupported_kernel"
