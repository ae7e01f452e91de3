"""The sampler against a scalar oracle, over many random parameter mixes."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.sampled import checked_tokens

from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.sampling.batch import SamplingBatch, SamplingRow
from semipd.sampling.logprobs import token_logprobs
from semipd.sampling.nucleus import nucleus
from semipd.sampling.philox import seed_words, uniforms

CPU = torch.device("cpu")
MARGIN = 1e-5
"""The oracle computes in double precision; closer decisions than this may fall either way in fp32."""


class Decisions:
    """Remembers how close the closest decision was."""

    def __init__(self) -> None:
        self.margin = math.inf

    def less(self, a: float, b: float) -> bool:
        if a != b:
            self.margin = min(self.margin, abs(a - b) / max(abs(a), abs(b)))
        return a < b


def oracle(logits: list[float], row: SamplingRow) -> tuple[int, float]:
    """Token and margin, one token at a time, straight from the definition."""
    p, decide = row.params, Decisions()
    scores = adjusted_by_definition(logits, row)
    ids = range(len(scores))
    ranked = sorted(ids, key=lambda i: (-scores[i], i))
    if p.temperature == 0.0:
        if scores != logits:
            decide.less(scores[ranked[1]], scores[ranked[0]])
        return ranked[0], decide.margin
    weights = [math.exp((score - scores[ranked[0]]) / p.temperature) for score in scores]
    alive = set(ids)
    if 0 < p.top_k < len(scores):
        kth = ranked[p.top_k - 1]
        alive = {i for i in ids if not decide.less(weights[i], weights[kth])}
    if p.top_p < 1.0:
        alive = nucleus_by_definition(weights, [i for i in ranked if i in alive], p.top_p, decide)
    alive = {i for i in alive if not decide.less(weights[i], p.min_p)}
    threshold = uniform_of(row) * sum(weights[i] for i in alive)
    cumulative = 0.0
    for i in sorted(alive):
        cumulative += weights[i]
        if decide.less(threshold, cumulative):
            return i, decide.margin
    return max(alive), 0.0


def adjusted_by_definition(logits: list[float], row: SamplingRow) -> list[float]:
    p, scores = row.params, list(logits)
    output = Counter(row.token_ids[row.num_prompt_tokens :])
    for token, bias in p.logit_bias:
        scores[token] += bias
    if p.allowed_token_ids:
        scores = [s if token in p.allowed_token_ids else -math.inf for token, s in enumerate(scores)]
    if row.num_output_tokens < p.min_tokens:
        for token in p.stop_token_ids:
            scores[token] = -math.inf
    for token in set(row.token_ids):
        scores[token] *= p.repetition_penalty if scores[token] <= 0 else 1 / p.repetition_penalty
        scores[token] -= p.frequency_penalty * output[token] + p.presence_penalty * (output[token] > 0)
    return scores


def nucleus_by_definition(
    weights: list[float], ranked: list[int], top_p: float, decide: Decisions
) -> set[int]:
    needed = top_p * sum(weights[i] for i in ranked)
    alive, before = set(), 0.0
    for rank, i in enumerate(ranked):
        if not decide.less(before, needed):
            # Nearly equal weights on the two sides of the border might swap ranks.
            decide.less(weights[i], weights[ranked[rank - 1]])
            break
        alive.add(i)
        before += weights[i]
    return alive


def uniform_of(row: SamplingRow) -> float:
    return float(uniforms(seed_words([row.params.seed], CPU), torch.tensor([len(row.token_ids)])))


def random_row(rng: random.Random, vocab_size: int) -> SamplingRow:
    """Every parameter is off half of the time, so that fast paths and mixes both occur."""

    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.5 else off

    def tokens(most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randrange(most))]

    params = SamplingParams(
        max_tokens=100,
        seed=rng.getrandbits(64),
        temperature=maybe(rng.uniform(0.2, 2.0), rng.choice([0.0, 1.0])),
        top_k=int(maybe(rng.randrange(1, vocab_size + 5), 0)),
        top_p=maybe(rng.uniform(0.05, 0.99), 1.0),
        min_p=maybe(rng.uniform(0.001, 0.3), 0.0),
        repetition_penalty=maybe(rng.uniform(0.7, 1.5), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=tuple((token, rng.uniform(-5, 5)) for token in set(tokens(4))),
        stop_token_ids=tuple(set(tokens(4))),
        min_tokens=int(maybe(rng.randrange(12), 0)),
    )
    prompt = [rng.randrange(vocab_size), *tokens(20)]
    row = SamplingRow(params, prompt + tokens(10), len(prompt))
    return row if rng.random() < 0.7 else row._replace(params=restricted(params, rng, vocab_size))


def restricted(params: SamplingParams, rng: random.Random, vocab_size: int) -> SamplingParams:
    """Some tokens are allowed, among them one that does not stop."""
    free = [token for token in range(vocab_size) if token not in params.stop_token_ids]
    some = rng.sample(range(vocab_size), rng.randrange(1, vocab_size + 1))
    return replace(params, allowed_token_ids=(*some, rng.choice(free)))


def random_logits(rng: random.Random, rows: int, vocab_size: int) -> torch.Tensor:
    """Peaked or flat; half of the time rounded so that ties are common."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    logits = torch.randn(rows, vocab_size, generator=generator) * rng.choice([0.5, 2.0, 6.0])
    return (logits * 2).round() / 2 if rng.random() < 0.5 else logits


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    return checked_tokens(SamplingBatch(rows, logits.shape[1], CPU).sample(logits))


@pytest.mark.parametrize(("vocab_size", "rounds"), [(7, 150), (61, 150), (2500, 12)])
def test_matches_the_scalar_oracle(vocab_size: int, rounds: int) -> None:
    rng = random.Random(vocab_size)
    compared = close = 0
    for _ in range(rounds):
        rows = [random_row(rng, vocab_size) for _ in range(rng.randrange(1, 8))]
        logits = random_logits(rng, len(rows), vocab_size)
        for i, token in enumerate(sample(logits, rows)):
            expected, margin = oracle(logits[i].tolist(), rows[i])
            compared += 1
            if margin < MARGIN:
                close += 1
            else:
                assert token == expected, (rows[i], margin)
    print(f"vocabulary {vocab_size}: {compared} draws compared, {close} too close to call")
    assert close < compared * 0.1


def test_advance_equals_building_anew() -> None:
    rng = random.Random(5)
    for _ in range(8):
        rows = [random_row(rng, 31) for _ in range(6)]
        batch = SamplingBatch(rows, 31, CPU)
        for _ in range(40):  # beyond the uniforms computed ahead
            logits = random_logits(rng, len(rows), 31)
            sampled = batch.sample(logits)
            tokens = checked_tokens(sampled)
            assert tokens == sample(logits, rows)
            rows = [row._replace(token_ids=[*row.token_ids, t]) for row, t in zip(rows, tokens, strict=True)]
            batch.advance(sampled)


@pytest.mark.parametrize("vocab_size", [33, 4099])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    for _ in range(8):
        rows = [random_row(rng, vocab_size) for _ in range(12)]
        logits = random_logits(rng, len(rows), vocab_size)
        together = sample(logits, rows)
        alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        order = rng.sample(range(12), 7)
        some = sample(logits[order], [rows[i] for i in order])
        assert together == alone
        assert some == [together[i] for i in order]


def test_sampling_leaves_the_logits_alone() -> None:
    rng = random.Random(9)
    rows = [random_row(rng, 40) for _ in range(8)]
    logits = random_logits(rng, 8, 40)
    before = logits.clone()
    sample(logits, rows)
    assert torch.equal(logits, before)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    rows = [SamplingRow(SamplingParams(max_tokens=1, seed=0, temperature=0.0), [1], 1)] * 3
    logits = torch.zeros(3, 5000)
    logits[1, [70, 4000]] = 1.0
    logits[2, [4998, 4999]] = 2.0
    assert sample(logits, rows) == [0, 70, 4998]


def test_tiny_temperature_is_greedy_and_finite() -> None:
    rows = [SamplingRow(SamplingParams(max_tokens=1, seed=s, temperature=1e-300), [1], 1) for s in range(20)]
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 1e30
    assert sample(logits, rows) == logits.argmax(dim=-1).tolist()


def test_frequencies_follow_the_distribution() -> None:
    """Chi-square over 20,000 seeds against softmax(logits / temperature)."""
    num, vocab_size = 20_000, 8
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.7, -0.4, 0.9, -2.0])
    expected = (logits / 0.8).softmax(0) * num
    rows = [
        SamplingRow(SamplingParams(max_tokens=1, seed=seed, temperature=0.8), [1], 1) for seed in range(num)
    ]
    drawn = torch.tensor(sample(logits.expand(num, vocab_size), rows))
    counts = torch.bincount(drawn, minlength=vocab_size)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 99.9th percentile of chi-square with 7 degrees of freedom.
    assert chi_square < 24.3, chi_square


def test_a_uniform_of_zero_draws_no_impossible_token() -> None:
    row = SamplingRow(SamplingParams(max_tokens=1, seed=6786339, top_k=2), [1], 1)
    assert uniform_of(row) == 0.0
    assert sample(torch.tensor([[0.0, 1.0, 3.0, 3.0]]), [row]) == [2]


def test_min_tokens_masks_stop_tokens_until_enough() -> None:
    params = SamplingParams(max_tokens=9, seed=1, temperature=0.0, stop_token_ids=(3,), min_tokens=2)
    logits = torch.zeros(1, 6)
    logits[0, 3], logits[0, 5] = 9.0, 1.0
    chosen = [sample(logits, [SamplingRow(params, [1, 2] + [5] * done, 2)])[0] for done in range(4)]
    assert chosen == [5, 5, 3, 3]


def test_each_row_counts_its_own_min_tokens() -> None:
    def row(min_tokens: int) -> SamplingRow:
        params = SamplingParams(9, seed=1, temperature=0.0, stop_token_ids=(3,), min_tokens=min_tokens)
        return SamplingRow(params, [1, 2], 2)

    batch = SamplingBatch([row(0), row(1), row(3)], 6, CPU)
    logits = torch.zeros(3, 6)
    logits[:, 3], logits[:, 5] = 9.0, 1.0
    chosen = []
    for _ in range(4):
        sampled = batch.sample(logits)
        chosen.append(checked_tokens(sampled))
        batch.advance(sampled)
    assert chosen == [[3, 5, 5], [3, 3, 5], [3, 3, 5], [3, 3, 3]]


def test_masks_of_min_tokens_go_when_the_last_row_has_enough() -> None:
    """However long the prompts beside it: until then each step copies its logits."""
    params = SamplingParams(9, seed=1, temperature=0.0, stop_token_ids=(3,), min_tokens=2)
    long, short = SamplingRow(params, [1] * 50, 50), SamplingRow(replace(params, min_tokens=0), [1, 2], 2)
    batch = SamplingBatch([long, short], 6, CPU)
    adjusting = []
    for _ in range(3):
        adjusting.append(batch._stages.adjusts)
        batch.advance(torch.tensor([5, 5]))
    assert adjusting == [True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(bad: float, temperature: float) -> None:
    params = SamplingParams(max_tokens=1, seed=1, temperature=temperature, top_p=0.9, top_k=3)
    rows = [SamplingRow(params, [1], 1)] * 3
    logits = torch.zeros(3, 16)
    logits[1, 4] = bad
    with pytest.raises(SemipdError, match=r"1 of 3 rows .*\[1\]") as raised:
        sample(logits, rows)
    assert raised.value.code == "invalid_logits"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    params = SamplingParams(9, seed=3, temperature=temperature, allowed_token_ids=(4, 9, 4), top_p=0.99)
    logits = torch.linspace(8.0, -8.0, 64).repeat(3, 1)
    rows = [SamplingRow(replace(params, seed=3), [5] * done, 3) for done in (4, 5, 6)]
    free = [row._replace(params=replace(params, allowed_token_ids=())) for row in rows]
    assert set(sample(logits, rows)) <= {4, 9}
    assert sample(logits, [rows[0], *free[1:]])[1:] == sample(logits, free)[1:]
    assert sample(logits, [row._replace(params=replace(params, temperature=0.0)) for row in rows]) == [4] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mask_hides_no_invalid_logit(bad: float) -> None:
    """Log-probabilities are of raw logits: a row is valid as a whole or not at all."""
    params = SamplingParams(9, seed=3, allowed_token_ids=(4,))
    logits = torch.zeros(2, 16)
    logits[1, 7] = bad
    sampled = SamplingBatch([SamplingRow(params, [1], 1)] * 2, 16, CPU).sample(logits)
    assert sampled.tolist() == [4, -1]


def test_allowed_tokens_that_are_impossible_leave_none() -> None:
    params = SamplingParams(9, seed=3, allowed_token_ids=(4, 5), stop_token_ids=(4, 5), min_tokens=2)
    free = SamplingParams(9, seed=3)
    rows = [SamplingRow(free, [1], 1), SamplingRow(params, [1], 1), SamplingRow(params, [1, 2, 3], 1)]
    sampled = SamplingBatch(rows, 16, CPU).sample(torch.zeros(3, 16)).tolist()
    assert sampled[0] == sample(torch.zeros(1, 16), rows[:1])[0]
    assert sampled[1] == -1
    assert sampled[2] in (4, 5)


def test_a_row_that_allows_no_token_is_refused() -> None:
    params = SamplingParams(max_tokens=4, seed=1, stop_token_ids=tuple(range(8)), min_tokens=1)
    with pytest.raises(SemipdError, match="allow no token"):
        sample(torch.zeros(1, 8), [SamplingRow(params, [1], 1)])


def test_nucleus_of_a_flat_distribution_needs_the_full_sort() -> None:
    """Thousands of equal weights: more than the candidates hold, and ties decided by id."""
    weights = torch.ones(5, 5000)
    weights[1, 4990:] = 2.0
    weights[2, 1500:] = 0.0
    top_p = torch.tensor([0.5, 0.5, 0.9, 0.005, 0.0625])
    keep = nucleus(weights, top_p)
    for row in range(5):
        values = weights[row].tolist()
        ranked = sorted(range(5000), key=lambda i: (-values[i], i))
        expected = nucleus_by_definition(values, ranked, float(top_p[row]), Decisions())
        assert set(keep[row].nonzero().squeeze(1).tolist()) == expected


def test_parameters_at_their_off_values_change_nothing() -> None:
    rng = random.Random(11)
    logits = random_logits(rng, 1, 97)
    plain = SamplingParams(max_tokens=1, seed=77, temperature=0.9)
    off = replace(plain, top_k=97, top_p=1.0, min_p=0.0)
    for length in range(1, 40):
        history = [1] * length
        assert sample(logits, [SamplingRow(plain, history, 1)]) == sample(
            logits, [SamplingRow(off, history, 1)]
        )


def test_the_rank_counts_the_tokens_that_are_at_least_as_likely() -> None:
    rng = random.Random(5)
    logits = torch.tensor([[float(rng.randrange(6)) for _ in range(30)] for _ in range(90)])
    tokens = torch.tensor([rng.randrange(30) for _ in range(90)])
    for wanted in (0, 3, 30):
        for row, entry in enumerate(token_logprobs(logits, tokens, [wanted] * 90)):
            own = float(logits[row, tokens[row]])
            assert entry.rank == sum(value >= own for value in logits[row].tolist())
            assert len(entry.top) == wanted


def test_logprobs_are_those_of_log_softmax() -> None:
    logits = random_logits(random.Random(3), 150, 40)
    tokens = torch.arange(150) % 40
    wanted = [n % 6 for n in range(150)]
    entries = token_logprobs(logits, tokens, wanted)
    for row, entry in enumerate(entries):
        weights = [math.exp(value) for value in logits[row].tolist()]
        logprobs = [math.log(weight / sum(weights)) for weight in weights]
        assert entry.token_id == row % 40
        assert entry.logprob == pytest.approx(logprobs[row % 40], abs=1e-5)
        assert len(entry.top) == wanted[row]
        best = sorted(logprobs, reverse=True)[: wanted[row]]
        assert [value for _, value in entry.top] == pytest.approx(best, abs=1e-5)
        assert all(value == pytest.approx(logprobs[token], abs=1e-5) for token, value in entry.top)
