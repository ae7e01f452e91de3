"""64 greedy tokens against transformers on the real CPU device: families, schedulers, chunks, pressure."""

import itertools
import random
from collections.abc import Iterator
from typing import cast

import pytest
from support.fake_engine import request
from support.live_engine import LiveRun
from support.oracle import GreedyOracle, Verdict
from support.tiny_models import tiny_checkpoint

from semipd.config.config import default_engine_settings
from semipd.core.request import Request
from semipd.core.settings import SchedulerName
from semipd.devices.cpu.device import CpuDevice

QUICK = (("semipd", 1), ("semipd", 7), ("chunked", 16), ("prefill-first", 512))
POLICIES = ("semipd", "chunked", "prefill-first")
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.soak)
    for case in itertools.product(POLICIES, (1, 7, 16, 512))
]
# What families differ in is compared with transformers without a device in test_models_parity.
FAMILIES = (
    "qwen3",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("llama", "mistral", "qwen2")),
)
NUM_BLOCKS = 40
MAX_TOKENS = 64


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CpuDevice, GreedyOracle]]:
    """(device, oracle) on one tiny fp32 checkpoint; the pool is small enough to run full."""
    model_dir = tiny_checkpoint(tmp_path_factory, request.param)
    settings = default_engine_settings(
        model_dir=str(model_dir),
        dtype="float32",
        max_model_len=256,
        max_num_blocks=NUM_BLOCKS,
        max_num_seqs=8,
    )
    device = CpuDevice.open(settings, lambda phase, limit_s: None)
    yield device, GreedyOracle(model_dir)
    device.close()


def judge(run: LiveRun, requests: list[Request], oracle: GreedyOracle) -> Verdict:
    total = Verdict()
    for r in requests:
        assert len(run.tokens[r.seq]) == r.params.max_tokens
        total += oracle.judge(r.prompt, run.tokens[r.seq])
    return total


def prompts(seed: int, count: int, vocab_size: int, longest: int) -> list[list[int]]:
    """Half of them begin with the same 40 tokens."""
    rng = random.Random(seed)
    common = [rng.randrange(vocab_size) for _ in range(40)]
    result = []
    for idx in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))]
        result.append(common + own if idx % 2 else own)
    return result


@pytest.mark.parametrize(("policy", "chunk_tokens"), CASES)
def test_greedy_tokens_agree(
    family: tuple[CpuDevice, GreedyOracle], policy: SchedulerName, chunk_tokens: int
) -> None:
    """Prefix hits: the second half of the requests arrives when the first has filled the cache."""
    device, oracle = family
    settings = default_engine_settings(
        scheduler=policy,
        prefill_chunk_tokens=chunk_tokens,
        step_token_budget=8 + chunk_tokens,
        max_num_seqs=3,
    )
    run = LiveRun(device, settings)
    texts = prompts(chunk_tokens, 4, device.info.vocab_size, longest=30 if chunk_tokens == 1 else 90)
    requests = [
        request(i, text, max_tokens=MAX_TOKENS, arrival_ns=i, temperature=0.0)
        for i, text in enumerate(texts, 1)
    ]
    run.run(requests[:2])
    run.run(requests[2:])
    verdict = judge(run, requests, oracle)
    hits = sum(cast(int, e.data["cached_tokens"]) for e in run.events if e.kind == "admitted")
    assert hits >= 32, "no prefix was reused"
    print(f"{policy} chunk {chunk_tokens}: {verdict}")


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_tokens_agree_when_preempted_half_way(
    family: tuple[CpuDevice, GreedyOracle], policy: SchedulerName
) -> None:
    """All eight prompts fit at once, all eight outputs do not."""
    device, oracle = family
    run = LiveRun(device, default_engine_settings(scheduler=policy, max_num_seqs=8))
    rng = random.Random(5)
    texts = [[rng.randrange(device.info.vocab_size) for _ in range(60)] for _ in range(8)]
    requests = [
        request(i, text, max_tokens=MAX_TOKENS, arrival_ns=i, temperature=0.0)
        for i, text in enumerate(texts, 1)
    ]
    run.run(requests)
    preempted = [e for e in run.events if e.kind == "preempted"]
    assert preempted, "the pool was large enough"
    assert any(run.finished[r.seq].reason == "length" for r in requests)
    print(f"{policy}: {judge(run, requests, oracle)}, {len(preempted)} preemptions")
