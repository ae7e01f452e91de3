"""Device sampling against the plain sampler, over many seeds and parameter mixes.

Both compute in fp32 with their own exp and sums, so a draw may differ where a decision is very close.
Each token must then be one that the definition yields when top-p, min-p and the uniform move by TOLERANCE.
"""

import itertools
import math
import random
from dataclasses import fields, replace

import pytest
import torch
import triton
import triton.language as tl
from semipd_kernels.sampling import (
    NO_SLOT,
    SamplingRows,
    SamplingUses,
    SamplingWorkspace,
    advance,
    count_history,
    sample,
    shape,
    token_logprobs,
)
from semipd_kernels.sampling.kernel import _coarse_bin, _first_bits, _threshold, _uniform_bits
from semipd_kernels.sampling.reference import (
    adjusted_logits,
    advance_reference,
    sample_reference,
    token_logprobs_reference,
    uniform_bits,
)
from semipd_kernels.sampling.rows import FORBIDDEN, PROMPT_FLAG, edits_of, needs_history
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.sampling.logprobs import token_logprobs as plain_logprobs
from semipd.sampling.philox import seed_words, uniforms
from semipd.sampling.sampler import SamplingBatch, SamplingRow

CPU = torch.device("cpu")
TOLERANCE = 1e-5
"""Of probabilities: how far a decision may be off. DESIGN section 3 allows 1e-4."""
SMALL_TILE = 128


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "TILE", SMALL_TILE)


class Batch:
    """Sequences, their parameters packed for the device, and the device's memory, poisoned."""

    def __init__(self, rows: list[SamplingRow], vocab_size: int) -> None:
        self.rows, self.vocab_size = rows, vocab_size
        params = [row.params for row in rows]
        lengths = [len(row.token_ids) for row in rows]
        prompts = [row.num_prompt_tokens for row in rows]
        needy = [i for i, row in enumerate(rows) if needs_history(row.params) or edits_of(*facts(row))]
        # Slots in another order than rows; none for rows that need none.
        slots = [len(needy) - 1 - needy.index(i) if i in needy else NO_SLOT for i in range(len(rows))]
        self.packed = SamplingRows.pack(params, lengths, prompts, slots, CPU)
        self.counts = torch.full((len(needy) + 1, vocab_size), -7, dtype=torch.int32)
        for i in needy:
            start_history(self.counts, slots[i], rows[i])
        self.work = SamplingWorkspace(len(rows) + 1, vocab_size, len(needy) + 1, CPU)
        self.uses = SamplingUses.of(params)
        self.poison()

    def poison(self) -> None:
        for memory in vars(self.work).values():
            if isinstance(memory, Tensor):
                memory.fill_(math.nan if memory.is_floating_point() else torch.iinfo(memory.dtype).min + 5)

    def sample(self, logits: Tensor, uses: SamplingUses | None = None) -> Tensor:
        return sample(logits, self.packed, self.counts, self.work, uses=uses or self.uses)

    def reference(self, logits: Tensor) -> Tensor:
        return sample_reference(logits, self.packed, self.counts)

    def plain(self, logits: Tensor) -> Tensor:
        return SamplingBatch(self.rows, self.vocab_size, CPU).sample(logits.float())


def start_history(counts: Tensor, slot: int, row: SamplingRow) -> None:
    allowed = row.params.allowed_token_ids
    count_history(counts, slot, row.token_ids, row.num_prompt_tokens, allowed)


def facts(row: SamplingRow) -> tuple[SamplingParams, int, int]:
    return row.params, len(row.token_ids), row.num_prompt_tokens


def random_row(rng: random.Random, vocab_size: int) -> SamplingRow:
    """Every parameter is off half of the time."""

    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.5 else off

    def tokens(most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randrange(most))]

    params = SamplingParams(
        max_tokens=100,
        seed=rng.getrandbits(64),
        temperature=maybe(math.exp(rng.uniform(-2.0, 2.0)), rng.choice([0.0, 1.0])),
        top_k=int(maybe(rng.randrange(1, vocab_size + 5), 0)),
        top_p=maybe(rng.uniform(0.05, 0.999), 1.0),
        min_p=maybe(rng.choice([rng.uniform(0.001, 0.3), 1.0]), 0.0),
        repetition_penalty=maybe(rng.uniform(0.7, 1.5), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=tuple((token, rng.uniform(-5, 5)) for token in set(tokens(5))),
        stop_token_ids=tuple(set(tokens(4))),
        min_tokens=int(maybe(rng.randrange(12), 0)),
    )
    if rng.random() < 0.3:
        some = rng.sample(range(vocab_size), rng.randrange(1, vocab_size + 1))
        params = replace(params, allowed_token_ids=(0, *some))
    prompt = [rng.randrange(vocab_size), *tokens(20)]
    return SamplingRow(params, prompt + tokens(10), len(prompt))


def random_logits(rng: random.Random, rows: int, vocab_size: int) -> Tensor:
    """Peaked or flat; half of the time rounded so that ties are common, sometimes with impossible tokens."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    logits = torch.randn(rows, vocab_size, generator=generator) * rng.choice([0.1, 0.5, 2.0, 6.0])
    if rng.random() < 0.5:
        logits = (logits * 2).round() / 2
    if rng.random() < 0.2:
        logits[:, 1:][torch.rand(rows, vocab_size - 1, generator=generator) < 0.3] = -math.inf
    return logits


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
        adjusted = adjusted_logits(logits[i].float(), batch.packed, batch.counts, i)
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


@pytest.mark.parametrize("step", [advance, advance_reference])
def test_advancing_equals_building_anew(step) -> None:  # type: ignore[no-untyped-def]
    rng, vocab_size = random.Random(5), 97
    batch = Batch([random_row(rng, vocab_size) for _ in range(4)], vocab_size)
    for _ in range(13):  # beyond every min_tokens
        logits = random_logits(rng, 4, vocab_size)
        tokens = batch.sample(logits) if step is advance else batch.reference(logits)
        fresh = Batch(batch.rows, vocab_size)
        compare(tokens, fresh.plain(logits), batch, logits)
        assert torch.equal(batch.packed.positions, fresh.packed.positions)
        for old, new in zip(batch.packed.slots.tolist(), fresh.packed.slots.tolist(), strict=True):
            assert new == NO_SLOT or torch.equal(batch.counts[old], fresh.counts[new])
        step(tokens, batch.packed, batch.counts)
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
            alone = Batch([row], vocab_size).sample(logits[i : i + 1], SamplingUses())
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
    assert batch.uses == SamplingUses(draws=False, filters=0)
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
    assert uniform_bits(6786339, 1) == 0
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
    for i in range(3):
        adjusted = adjusted_logits(logits[i], batch.packed, batch.counts, i)
        assert torch.equal(batch.work.adjusted[int(batch.packed.slots[i])], adjusted)
        plain = SamplingBatch([rows[i]], 200, CPU)._adjust(logits[i : i + 1])[0]
        torch.testing.assert_close(adjusted, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("filters", [0, 1, 2])
def test_launches_left_out_change_nothing(filters: int) -> None:
    rng = random.Random(10)
    rows = []
    for _ in range(6):
        row = random_row(rng, 50)
        off = {0: {"top_k": 0, "top_p": 1.0}, 1: {rng.choice(["top_k"]): 0}, 2: {}}[filters]
        rows.append(row._replace(params=replace(row.params, **off)))
    batch, logits = Batch(rows, 50), random_logits(rng, 6, 50)
    assert batch.uses.filters <= filters
    assert torch.equal(batch.sample(logits), batch.sample(logits, SamplingUses()))


def test_uses_follow_the_parameters() -> None:
    plain = SamplingParams(max_tokens=1, seed=0)
    greedy = replace(plain, temperature=0.0, top_k=4, top_p=0.5)
    assert SamplingUses.of([]) == SamplingUses.of([greedy]) == SamplingUses(False, 0)
    assert SamplingUses.of([greedy, plain]) == SamplingUses(True, 0)
    assert SamplingUses.of([replace(plain, top_k=3), replace(plain, top_p=0.5)]) == SamplingUses(True, 1)
    assert SamplingUses.of([replace(plain, top_k=3, top_p=0.5)]) == SamplingUses(True, 2)


def test_output_may_be_given_and_no_rows_are_fine() -> None:
    batch, logits = Batch([greedy_row()], 20), random_logits(random.Random(11), 1, 20)
    out = torch.zeros(1, dtype=torch.int64)
    assert sample(logits, batch.packed, batch.counts, batch.work, out=out) is out
    assert int(out) == int(logits.argmax())
    empty = Batch([], 20)
    assert empty.sample(logits[:0]).shape == (0,)
    advance(torch.zeros(0, dtype=torch.int64), empty.packed, empty.counts)


def test_rows_of_logits_may_be_strided() -> None:
    rng = random.Random(12)
    batch = Batch([random_row(rng, 70) for _ in range(4)], 70)
    wide = torch.full((4, 90), math.nan)
    wide[:, :70] = random_logits(rng, 4, 70)
    assert torch.equal(batch.sample(wide[:, :70]), batch.sample(wide[:, :70].contiguous()))


@triton.jit
def _uniform_kernel(seeds_ptr, positions_ptr, totals_ptr, bits_ptr, thresholds_ptr):
    index = tl.program_id(0)
    bits = _uniform_bits(tl.load(seeds_ptr + index), tl.load(positions_ptr + index))
    tl.store(bits_ptr + index, bits)
    tl.store(thresholds_ptr + index, _threshold(bits, tl.load(totals_ptr + index)))


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
    assert bits.tolist() == [uniform_bits(s, p) for s, p in zip(seeds, positions, strict=True)]
    assert thresholds.tolist() == [b * t >> 24 for b, t in zip(bits.tolist(), totals, strict=True)]


@triton.jit
def _bins_kernel(distances_ptr, bins_ptr, first_ptr, count: tl.constexpr):
    index = tl.arange(0, count)
    bins = _coarse_bin(tl.load(distances_ptr + index))
    tl.store(bins_ptr + index, bins)
    tl.store(first_ptr + index, _first_bits(bins))


def test_coarse_intervals_are_ordered_and_at_most_2_23_floats_wide() -> None:
    generator = torch.Generator().manual_seed(0)
    # Distances up to 27.75.
    bits = torch.randint(0, 0x41DE0000, (2**14,), dtype=torch.int32, generator=generator)
    starts = torch.arange(1, 1775) / 64
    bits[:4096] = (torch.rand(4096, generator=generator) * 27.73).view(torch.int32)
    bits[4096:5870] = starts.view(torch.int32)
    bits[6000:7774] = starts.view(torch.int32) - 1
    bits[8000:8004] = torch.tensor([0, 1, 0x7FFFFF, 0x800000], dtype=torch.int32)
    bits = bits.sort().values
    bins, first = torch.empty_like(bits), torch.empty_like(bits)
    _bins_kernel[(1,)](bits.view(torch.float32), bins, first, count=2**14)
    assert (bins.diff() >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2048
    assert (bits - first >= 0).all()
    assert (bits - first < 2**23).all()
    # A new interval starts exactly at its first distance.
    last_of_previous = bits[:-1][bins.diff() > 0]
    assert (last_of_previous < first[1:][bins.diff() > 0]).all()


def test_histories_are_counted() -> None:
    counts = torch.full((3, 9), 5, dtype=torch.int32)
    count_history(counts, 1, [3, 3, 4, 8, 8, 8, 3], num_prompt_tokens=3)
    assert counts[1].tolist() == [0, 0, 0, PROMPT_FLAG + 1, PROMPT_FLAG, 0, 0, 0, 3]
    assert (counts[[0, 2]] == 5).all()
    rows = SamplingRows.pack([SamplingParams(1, 0)] * 4, [7] * 4, [3] * 4, [1, NO_SLOT, 0, 2], CPU)
    advance(torch.tensor([8, 0, -1, 4]), rows, counts)
    assert counts[1].tolist() == [0, 0, 0, PROMPT_FLAG + 1, PROMPT_FLAG, 0, 0, 0, 4]
    assert (counts[0] == 5).all()
    assert counts[2].tolist() == [5, 5, 5, 5, 6, 5, 5, 5, 5]
    assert rows.positions.tolist() == [8] * 4


def test_tokens_that_are_not_allowed_are_marked_beside_their_counts() -> None:
    counts = torch.full((2, 6), 5, dtype=torch.int32)
    count_history(counts, 1, [3, 4, 4, 0], num_prompt_tokens=1, allowed_token_ids=(3, 4, 3))
    assert counts[1].tolist() == [FORBIDDEN + 1, FORBIDDEN, FORBIDDEN, PROMPT_FLAG, 2, FORBIDDEN]
    params = SamplingParams(9, 0, allowed_token_ids=(1,))
    with pytest.raises(AssertionError, match="row 0 needs a slot"):
        SamplingRows.pack([params], [3], [1], [NO_SLOT], CPU)


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


def test_packing_to_a_capacity_and_copying() -> None:
    rng = random.Random(14)
    rows = [random_row(rng, 40) for _ in range(3)]
    params, lengths, prompts = zip(*map(facts, rows), strict=True)
    exact = SamplingRows.pack(params, lengths, prompts, [2, 0, 1], CPU)
    padded = SamplingRows.pack(params, lengths, prompts, [2, 0, 1], CPU, num_rows=5, num_edits=50)
    assert len(padded) == 5
    assert padded.slots.tolist() == [2, 0, 1, NO_SLOT, NO_SLOT]
    assert padded.edit_starts.tolist() == [*exact.edit_starts.tolist(), *exact.edit_starts.tolist()[-1:] * 2]
    static = SamplingRows.pack([], [], [], [], CPU, num_rows=5, num_edits=50)
    static.copy_from(padded)
    for field in fields(SamplingRows):
        assert torch.equal(getattr(static, field.name), getattr(padded, field.name))
    logits = random_logits(rng, 5, 40)
    batch = Batch(rows, 40)
    counts = torch.zeros(3, 40, dtype=torch.int32)
    for row, slot in zip(rows, [2, 0, 1], strict=True):
        start_history(counts, slot, row)
    work = SamplingWorkspace(5, 40, 3, CPU)
    tokens = sample(logits, static, counts, work)
    assert torch.equal(tokens[:3], batch.sample(logits[:3]))
    assert torch.equal(tokens[3:], logits[3:].argmax(dim=-1))


def test_edits_are_merged_and_rows_with_them_need_a_slot() -> None:
    params = SamplingParams(9, 0, logit_bias=((5, 1.0), (2, -3.0)), stop_token_ids=(7, 5), min_tokens=4)
    assert edits_of(params, num_tokens=13, num_prompt_tokens=10) == [(2, -3.0, 0), (5, 1.0, 14), (7, 0.0, 14)]
    assert edits_of(params, num_tokens=14, num_prompt_tokens=10) == [(2, -3.0, 0), (5, 1.0, 0)]
    with pytest.raises(AssertionError, match="row 0 needs a slot"):
        SamplingRows.pack([params], [13], [10], [NO_SLOT], CPU)
    with pytest.raises(AssertionError, match="3 edits, capacity 2"):
        SamplingRows.pack([params], [13], [10], [0], CPU, num_edits=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "max_top"), [(5, 5), (64, 20), (300, 20), (301, 3)])
@pytest.mark.usefixtures("small_tiles")
def test_logprobs_match_the_plain_ones(vocab_size: int, max_top: int, dtype: torch.dtype) -> None:
    rng = random.Random(vocab_size)
    logits = torch.cat([random_logits(rng, 4, vocab_size), random_logits(rng, 4, vocab_size)]).to(dtype)
    tokens = torch.tensor([rng.randrange(vocab_size) for _ in range(8)])
    wanted = [rng.randrange(max_top + 1) for _ in range(7)] + [max_top]
    num_top = torch.tensor(wanted, dtype=torch.int32)
    own, ids, values = token_logprobs(logits, tokens, num_top, max_top)
    reference = token_logprobs_reference(logits, tokens, num_top, max_top)
    for actual, expected in zip((own, ids, values), reference, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5, equal_nan=True)
    for row, entry in enumerate(plain_logprobs(logits.float(), tokens, wanted)):
        assert float(own[row]) == pytest.approx(entry.logprob, abs=1e-5)
        top = values[row, : wanted[row]].tolist()
        assert top == pytest.approx([value for _, value in entry.top], abs=1e-5)


@pytest.mark.usefixtures("small_tiles")
def test_equal_logprobs_rank_by_id_across_tiles() -> None:
    logits = torch.zeros(2, 200)
    logits[0, [150, 20, 199]] = 2.0
    logits[1, ::2] = -0.0
    num_top = torch.tensor([5, 5], dtype=torch.int32)
    for function in (token_logprobs, token_logprobs_reference):
        _, ids, _ = function(logits, torch.tensor([0, 0]), num_top, 5)
        assert ids.tolist() == [[20, 150, 199, 0, 1], [0, 1, 2, 3, 4]]


def test_rows_that_want_no_logprobs() -> None:
    logits = random_logits(random.Random(15), 4, 50).clamp_min(-9.0)
    logits[3, 7] = math.nan
    num_top = torch.tensor([-1, 0, 2, 2], dtype=torch.int32)
    tokens = torch.tensor([3, 3, -1, 3])
    own, ids, values = token_logprobs(logits, tokens, num_top, 2)
    assert own.isnan().tolist() == [True, False, True, True]
    assert float(own[1]) == pytest.approx(float(logits[1].log_softmax(0)[3]), abs=1e-5)
    assert ids[:2].tolist() == [[-1, -1], [-1, -1]]
    assert values.isnan().all(dim=1).tolist() == [True, True, False, True]
    only_own, none, _ = token_logprobs(logits, tokens, num_top.clamp(max=0), 0)
    assert torch.equal(only_own[:2].nan_to_num(7.0), own[:2].nan_to_num(7.0))
    assert none.shape == (4, 0)


def refused() -> list[tuple[str, dict[str, object]]]:
    other = Batch([greedy_row()] * 2, 16)
    return [
        ("float32 or bfloat16", {"logits": torch.zeros(1, 16, dtype=torch.float16)}),
        ("float32 or bfloat16", {"logits": torch.zeros(16, 1).t()[:, ::2]}),
        ("1 to 262144 tokens", {"logits": torch.zeros(1, 262145)}),
        ("as many rows of parameters", {"rows": other.packed}),
        ("counts", {"counts": torch.zeros(1, 17, dtype=torch.int32)}),
        ("counts", {"counts": torch.zeros(1, 16)}),
        ("as the workspace has", {"counts": torch.zeros(9, 16, dtype=torch.int32)}),
        ("workspace is for", {"workspace": SamplingWorkspace(0, 16, 1, CPU)}),
        ("workspace is for", {"workspace": SamplingWorkspace(1, 17, 1, CPU)}),
        ("needs out", {"out": torch.zeros(1, dtype=torch.int32)}),
        ("0, 1 or 2 filters", {"uses": SamplingUses(True, 3)}),
    ]


@pytest.mark.parametrize(("sentence", "changes"), refused())
def test_refuses_what_it_cannot_do(sentence: str, changes: dict[str, object]) -> None:
    batch = Batch([greedy_row()], 16)
    inputs = {
        "logits": torch.zeros(1, 16),
        "rows": batch.packed,
        "counts": torch.zeros(1, 16, dtype=torch.int32),
        "workspace": batch.work,
    }
    with pytest.raises(SemipdError, match=sentence) as raised:
        sample(**{**inputs, **changes})  # type: ignore[arg-type]
    assert raised.value.code == "unsupported_kernel"


def test_refuses_more_alternatives_than_there_are() -> None:
    logits, tokens, num_top = torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1).int()
    for max_top in (-1, 9, 21):
        with pytest.raises(SemipdError, match="0 to 8 alternatives"):
            token_logprobs(logits, tokens, num_top, max_top)
