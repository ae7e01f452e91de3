"""A checkpoint with a row of NaN or infinity: prompts that hold its token fail, everybody else gets the very
tokens that they get without them. The CPU's decoder and runner, then both CUDA lanes under a fake driver."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from support import cuda_rig
from support.cuda_rig import DEFAULTS, FAMILIES, TINY, Rig, random_weights
from support.cuda_serving import serve
from support.step_tokens import one_each
from torch import Tensor

from semipd.core.plan import INVALID_LOGITS, Join, Segment, StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import SchedulerName
from semipd.core.split import Split
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler
from semipd.network.kv_layout import KvLayout
from semipd.network.rows import PassResult, StepRows
from semipd.steps.runner import StepRunner

CPU = torch.device("cpu")
SPLIT = Split(1, 1)
BAD = 60
"""No sampled token: its row of `lm_head` makes it unlikely."""

VALUES = [math.nan, math.inf, -math.inf]


def poisoned_weights(value: float, *, columns: slice = slice(None)) -> dict[str, Tensor]:
    weights = random_weights(TINY)
    weights["embed"][BAD, columns] = value
    weights["lm_head"][BAD] = 0.0
    return weights


class Driver:
    """Plans of a lane by hand, over blocks that held NaN before."""

    def __init__(self, weights: dict[str, Tensor], num_blocks: int = 120) -> None:
        self.pool = torch.full(KvLayout.of(TINY, 16).pool_shape(num_blocks), math.nan)
        self.runner = StepRunner(CpuNetwork(TINY, weights, self.pool), TINY.vocab_size, CPU)
        self._ids = itertools.count(1)

    def join(self, seq: int, tokens: list[int], first_block: int, **params: object) -> Join:
        options = SamplingParams(max_tokens=9, seed=seq, **params)  # type: ignore[arg-type]
        return Join(SeqId(seq), tokens, len(tokens), options, list(range(first_block, first_block + 5)))

    def prefill(self, *joins: Join, decode: tuple[SeqId, ...] = ()) -> StepResult:
        segments = tuple(Segment(j.seq, 0, len(j.token_ids), True, j.params.prompt_logprobs) for j in joins)
        return self.step(segments=segments, joins=joins, decode=decode)

    def step(self, **fields: object) -> StepResult:
        return self.runner.execute(StepPlan(next(self._ids), SPLIT, **fields))  # type: ignore[arg-type]


def outputs(weights: dict[str, Tensor], *, with_bad: bool, num_rows: int) -> dict[int, list[int]]:
    """Tokens of good sequences; the bad one stands between them and is never told to leave."""
    driver, rng = Driver(weights), random.Random(num_rows)
    joins = []
    for seq in range(1, num_rows + 1):
        tokens = [rng.randrange(50) for _ in range(rng.randrange(1, 30))]
        if seq == 2:
            tokens = [*tokens, BAD if with_bad else 3, *tokens]
        temperature = rng.choice([0.0, 0.8])
        joins.append(
            driver.join(seq, tokens, 5 * seq, temperature=temperature, top_p=0.9, repetition_penalty=1.1)
        )
    found: dict[int, list[int]] = {seq: [] for seq in range(1, num_rows + 1)}
    order = tuple(join.seq for join in joins)
    for idx in range(12):
        result = driver.prefill(*joins) if idx == 0 else driver.step(decode=order)
        assert result.failed == ({SeqId(2): INVALID_LOGITS} if with_bad else None)
        for seq, token in zip(order, one_each(result.tokens), strict=True):
            found[seq].append(token)
    residents = {resident.seq: resident.token_ids for resident in driver.runner.residents}
    assert not with_bad or len(residents[SeqId(2)]) == len(joins[1].token_ids), "nothing was appended"
    del found[2]
    return found


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("num_rows", [3, 9])
def test_a_bad_row_changes_no_bit_of_its_batch(value: float, num_rows: int) -> None:
    """Three rows decode one by one, nine in the pool's order."""
    weights = poisoned_weights(value)
    assert outputs(weights, with_bad=True, num_rows=num_rows) == outputs(
        weights, with_bad=False, num_rows=num_rows
    )


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("start", [0, 20])
def test_a_chunk_that_samples_nothing_fails_too(value: float, start: int) -> None:
    """Its KV would be found as a prefix: rows before the bad token hold NaN as well, since 0 x NaN is NaN."""
    driver = Driver(poisoned_weights(value))
    tokens = [*range(30), BAD, *range(20)]
    joins = (driver.join(1, tokens, 5), driver.join(2, list(range(51)), 10))
    if start:
        first = tuple(Segment(SeqId(seq), 0, start, False) for seq in (1, 2))
        assert driver.step(segments=first, joins=joins).failed is None
    segments = tuple(Segment(SeqId(seq), start, 40 - start, False) for seq in (1, 2))
    result = driver.step(segments=segments, joins=() if start else joins)
    assert (result.tokens, result.failed) == ([], {SeqId(1): INVALID_LOGITS})
    good = driver.pool[:, :, 10:12]
    assert good.isfinite().all()


def test_blocks_that_held_nan_serve_another() -> None:
    driver, fresh = Driver(poisoned_weights(math.nan)), Driver(poisoned_weights(math.nan))
    bad = [driver.join(seq, [BAD] * 70, 5 * seq) for seq in range(1, 8)]
    assert driver.prefill(*bad).failed == dict.fromkeys((join.seq for join in bad), INVALID_LOGITS)
    leaves = tuple(join.seq for join in bad)
    fresh.pool.zero_()
    rows = [(seq, [seq, 3, 4] * seq, 5 * (seq - 10)) for seq in range(11, 18)]
    got, want = [
        [
            d.prefill(*(d.join(*row, temperature=0.0, logprobs=2) for row in rows))
            if idx == 0
            else d.step(decode=tuple(SeqId(seq) for seq, *_ in rows))
            for idx in range(20)
        ]
        for d in (driver, fresh)
        if d is fresh or d.step(leaves=leaves)
    ]
    assert [r.tokens for r in got] == [r.tokens for r in want]
    assert [r.logprobs for r in got] == [r.logprobs for r in want]
    assert all(r.failed is None for r in got)


def test_log_probabilities_of_a_bad_row_are_not_sent() -> None:
    driver = Driver(poisoned_weights(math.nan))
    good = driver.join(1, [1, 2, 3], 5, logprobs=2, prompt_logprobs=1)
    bad = driver.join(2, [1, BAD, 3], 10, logprobs=2, prompt_logprobs=1)
    for _ in range(2):
        result = driver.prefill(good, bad)
        driver.runner.rebuild([])
        assert result.failed == {SeqId(2): INVALID_LOGITS}
        assert result.logprobs is not None
        assert (result.logprobs[0] is None, result.logprobs[1]) == (False, None)
        assert result.prompt_logprobs is not None
        assert list(result.prompt_logprobs) == [1]


def test_a_prompt_row_that_overflows_behind_the_last_kv_fails_when_it_is_asked_for() -> None:
    """Only the logits of one prompt token are invalid: who does not ask for them is served."""
    weights = random_weights(TINY)
    driver = Driver(weights)
    inner = driver.runner._decoder

    class Overflowing:
        block_size = inner.block_size

        def forward(self, rows: StepRows, wanted: torch.Tensor | None) -> PassResult:
            result = inner.forward(rows, wanted)
            if len(result.logits) > 1:
                result.logits[1, 5] = math.inf
            return result

    driver.runner._decoder = Overflowing()
    asking = driver.prefill(driver.join(1, [1, 2, 3], 5, prompt_logprobs=0))
    assert (asking.failed, asking.prompt_logprobs) == ({SeqId(1): INVALID_LOGITS}, None)
    assert driver.prefill(driver.join(2, [1, 2, 3], 10)).failed is None


@pytest.mark.parametrize("penalty", [1e-300, 1e38])
def test_parameters_that_leave_no_number_fail_their_own_row(penalty: float) -> None:
    """The second wall: whoever lets such a value through."""
    driver = Driver(random_weights(TINY))
    joins = [driver.join(seq, [1, 2, 3], 5 * seq, temperature=0.7) for seq in (1, 2, 3)]
    extreme = replace(joins[1].params, repetition_penalty=penalty, logit_bias=((2, 3e38), (3, 3e38)))
    plain = driver.prefill(*joins).tokens
    driver.runner.rebuild([])
    result = driver.prefill(joins[0], replace(joins[1], params=extreme), joins[2])
    assert result.failed in (None, {SeqId(2): INVALID_LOGITS})
    assert (result.tokens[0], result.tokens[2]) == (plain[0], plain[2])


# ---- CUDA -----------------------------------------------------------------------------------------


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take heads of 64 and more."""
    monkeypatch.setitem(FAMILIES, "llama", replace(TINY, head_dim=64))


def rig_of(seed: int, kernels: bool, scheduler: SchedulerName = "semipd") -> Rig:
    settings = replace(DEFAULTS, scheduler=scheduler)
    if not kernels:
        return Rig(seed, settings=settings, decode_depth=1 + seed % 2)
    ops = KernelOps(torch.float32, 90)
    return Rig(seed, settings=settings, ops=ops, sampler_of=lambda size: KernelSampler(size, cuda_rig.CPU))


def some_requests(rng: random.Random, *, bad: bool) -> list[Request]:
    """Greedy, so that the last bits of other batches decide nothing; shared prefixes; 4 of 14 are bad."""
    found = []
    for seq in range(1, 15):
        prompt = [*range(seq % 3 * 20), *(rng.randrange(50) for _ in range(rng.randrange(1, 45)))]
        at = rng.randrange(len(prompt) + 1)
        if bad and seq % 4 == 2:
            prompt.insert(at, BAD)
        params = SamplingParams(
            max_tokens=12, seed=seq, temperature=0.0, logprobs=1, prompt_logprobs=rng.choice([None, 1])
        )
        found.append(Request(SeqId(seq), f"r{seq}", prompt, params, seq))
    return found


@pytest.mark.parametrize(
    ("seed", "kernels", "scheduler"),
    [
        (0, False, "semipd"),
        (1, False, "semipd"),
        (2, False, "chunked"),
        (3, False, "prefill-first"),
        (4, True, "semipd"),
        (5, True, "chunked"),
    ],
)
@pytest.mark.usefixtures("wide_heads")
def test_both_lanes_go_on_beside_bad_rows(seed: int, kernels: bool, scheduler: SchedulerName) -> None:
    found = []
    for bad in (True, False):
        rig = rig_of(seed, kernels, scheduler)
        rig.weights["embed"][BAD] = VALUES[seed % 3]
        rig.weights["lm_head"][BAD] = 0.0
        requests = some_requests(random.Random(seed), bad=bad)
        serve(rig, requests)
        found.append(rig)
    with_bad, without = found
    failed = {seq for seq, end in with_bad.finished.items() if end.code == INVALID_LOGITS}
    assert failed == {SeqId(seq) for seq in (2, 6, 10, 14)}
    for seq in without.finished.keys() - failed:
        assert with_bad.tokens[seq] == without.tokens[seq]
        assert with_bad.finished[seq].reason == "length"
    entries = [e for of_seq in with_bad.prompt_logprobs.values() for e in of_seq]
    assert not any(math.isnan(entry.logprob) for entry in entries)
    assert not failed & with_bad.tokens.keys()
    index = with_bad.coordinator.scheduler.memory.index
    known = [block for block in range(with_bad.num_blocks) if index.knows(block)]
    assert known
    assert with_bad.pool[:, :, known].isfinite().all(), "a prefix holds NaN"
