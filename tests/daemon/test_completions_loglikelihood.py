"""lm-eval's log-likelihood requests against the CPU device: sums as transformers computes them in float32."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.daemon import Running, running
from support.gguf_files import write_gguf
from support.tiny_models import reference_logits, tiny_checkpoint

from semipd.config.config import default_engine_settings
from semipd.daemon.model.files import ModelFiles

TOLERANCE = 1e-3

# each engine is three processes that import torch, which takes its time on a busy machine
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory, getattr(request, "param", "llama"))


@pytest.fixture
async def daemon(folder: Path, tmp_path: Path) -> AsyncIterator[Running]:
    """It reads the checkpoint from a file of GGUF with the same numbers."""
    model = str(write_gguf(folder, tmp_path / "m.gguf"))
    settings = default_engine_settings(
        model_dir=model,
        dtype="float32",
        kv_bytes=8 * 2**20,
        prefill_chunk_tokens=48,  # long prompts are computed in several steps
    )
    async with running(tmp_path, ModelFiles.open(model), fake=settings) as daemon:
        yield daemon


def make_requests(vocab_size: int, count: int) -> list[tuple[list[int], int]]:
    """(token ids, length of the context); many share a context, as the answers of a multiple choice do."""
    rng = random.Random(0)
    shared = [rng.randrange(vocab_size) for _ in range(90)]
    found = []
    for idx in range(count):
        context = shared if idx % 2 else [rng.randrange(vocab_size) for _ in range(rng.randint(1, 120))]
        answer = [rng.randrange(vocab_size) for _ in range(rng.randint(1, 12))]
        found.append((context + answer, len(context)))
    return found


def reference(folder: Path, token_ids: list[int], num_context: int) -> tuple[float, bool, float]:
    """Sum over the continuation, whether it is the greedy one, and the smallest gap that decides that."""
    logprobs = torch.log_softmax(reference_logits(folder, token_ids), dim=-1)
    rows = logprobs[num_context - 1 : -1]
    chosen = rows.gather(1, torch.tensor(token_ids[num_context:])[:, None])[:, 0]
    top = rows.topk(2).values
    gaps = torch.where(chosen == top[:, 0], top[:, 0] - top[:, 1], top[:, 0] - chosen)
    return float(chosen.sum()), bool((chosen == top[:, 0]).all()), float(gaps.min())


def as_lm_eval_reads(choice: dict[str, Any], num_context: int) -> tuple[float, bool]:
    logprobs = choice["logprobs"]
    tokens, tops = logprobs["tokens"][num_context:-1], logprobs["top_logprobs"][num_context:-1]
    greedy = all(
        max(top, key=lambda name: top[name]) == token for token, top in zip(tokens, tops, strict=True)
    )
    return sum(logprobs["token_logprobs"][num_context:-1]), greedy


@pytest.mark.parametrize("folder", ["llama", pytest.param("qwen2", marks=pytest.mark.soak)], indirect=True)
async def test_scores_are_those_of_transformers(daemon: Running, folder: Path) -> None:
    """On one engine, whose start takes longer than all three."""
    await sums_are_those_of_transformers(daemon, folder)
    await the_greedy_continuation_is_recognized(daemon)
    await prompt_logprobs_are_those_of_transformers(daemon, folder)


async def sums_are_those_of_transformers(daemon: Running, folder: Path) -> None:
    requests = make_requests(daemon.services.generation.limits.vocab_size, 24)
    common = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    worst = 0.0
    for begin in range(0, len(requests), 8):
        batch = requests[begin : begin + 8]
        answer = await daemon.complete(prompt=[token_ids for token_ids, _ in batch], **common)
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(batch)))
        for choice, (token_ids, num_context) in zip(answer["choices"], batch, strict=True):
            assert len(choice["logprobs"]["token_logprobs"]) == len(token_ids) + 1
            total, is_greedy = as_lm_eval_reads(choice, num_context)
            wanted, wanted_greedy, gap = reference(folder, token_ids, num_context)
            worst = max(worst, abs(total - wanted))
            assert is_greedy == wanted_greedy or gap < TOLERANCE
    assert worst < TOLERANCE


async def the_greedy_continuation_is_recognized(daemon: Running) -> None:
    context = [5, 9, 77, 120, 8]
    answer = await daemon.complete(
        prompt=context, max_tokens=6, temperature=0, return_token_ids=True, ignore_eos=True, logprobs=0
    )
    [written] = answer["choices"]
    scored = await daemon.complete(
        prompt=context + written["token_ids"], max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    total, is_greedy = as_lm_eval_reads(scored["choices"][0], len(context))
    assert is_greedy
    assert total == pytest.approx(sum(written["logprobs"]["token_logprobs"]), abs=TOLERANCE)


async def prompt_logprobs_are_those_of_transformers(daemon: Running, folder: Path) -> None:
    [(token_ids, _)] = make_requests(daemon.services.generation.limits.vocab_size, 1)
    answer = await daemon.complete(prompt=token_ids, max_tokens=1, prompt_logprobs=3)
    first, *rest = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    logprobs = torch.log_softmax(reference_logits(folder, token_ids), dim=-1)
    for position, entry in enumerate(rest):
        for token, shown in entry.items():
            assert shown["logprob"] == pytest.approx(float(logprobs[position, int(token)]), abs=TOLERANCE)
        best = [token for token, shown in entry.items() if shown["rank"] == 1]
        assert len(best) == 1
        assert float(logprobs[position].max() - logprobs[position, int(best[0])]) < TOLERANCE
        own = token_ids[position + 1]
        above, not_below = logprobs[position, own] + TOLERANCE, logprobs[position, own] - TOLERANCE
        rank = entry[str(own)]["rank"]
        assert (logprobs[position] > above).sum() < rank <= (logprobs[position] >= not_below).sum()
    answer = await daemon.complete(prompt=token_ids[:6], max_tokens=1, prompt_logprobs=-1)
    for position, entry in enumerate(answer["choices"][0]["prompt_logprobs"][1:]):
        shown = torch.tensor([entry[str(token)]["logprob"] for token in range(len(entry))])
        assert torch.allclose(shown.double(), logprobs[position].double(), atol=TOLERANCE)
