"""A real instruct model on the CPU device, if it can be had: SmolLM2-135M-Instruct against transformers.

It is fetched into the user's cache, once. Where it cannot be, these tests are skipped with the reason.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon import Running, running
from support.eventually import eventually
from support.oracle import GreedyOracle, Verdict

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.daemon.model.files import ModelFiles

pytestmark = [pytest.mark.timeout(1800), pytest.mark.soak]

ROOT = Path(__file__).parents[2]
FETCH_LIMIT_S = 300
NUM_TOKENS = 24
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "What is 2 + 3?",
    "Translate 'good morning' into German.",
    "Who wrote Hamlet?",
    "Say hello to Ünal 😀.",
    "List the days of the week.",
    "What does a compiler do?",
    "Continue: roses are red,",
]


@pytest.fixture(scope="module")
def model() -> Path:
    command = [sys.executable, "-m", "semipd.commands.daemon", "fetch", "smollm2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-2])
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def oracle(model: Path) -> GreedyOracle:
    return GreedyOracle(model)


def settings(model: Path, scheduler: SchedulerName) -> EngineSettings:
    """A pool for a third of what is asked at once: sequences are preempted."""
    return default_engine_settings(
        device="cpu",
        model_dir=str(model),
        dtype="float32",
        scheduler=scheduler,
        max_model_len=7000,
        max_num_blocks=700,
        prefill_chunk_tokens=256,
    )


def chats() -> list[list[dict[str, str]]]:
    """Every question twice, once behind words that half of them share."""
    asked = [{"role": "user", "content": question} for question in QUESTIONS]
    return [[one] for one in asked] + [[SYSTEM, one] for one in asked]


def documents(files: ModelFiles) -> list[list[int]]:
    """Beginnings of our documents, 2,000 to 6,000 tokens; two of them begin alike."""
    names = ("operations", "protocol", "kernels", "gpu", "operations")
    lengths = (2000, 3000, 4000, 6000, 5000)
    texts = [(ROOT / "docs" / f"{name}.md").read_text() for name in names]
    return [
        files.tokenizer.encode(text[: 8 * length])[:length]
        for text, length in zip(texts, lengths, strict=True)
    ]


async def test_it_knows_the_capital_of_france(model: Path, tmp_path: Path) -> None:
    """As `make start` serves it."""
    files = ModelFiles.open("smollm2")
    async with running(tmp_path, files, fake=default_engine_settings(model_dir=str(model))) as daemon:
        answer = await daemon.chat(messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0)
    [choice] = answer["choices"]
    assert choice["message"]["content"] == "The capital of France is Paris."
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("scheduler", ["semipd", "chunked", "prefill-first"])
async def test_tokens_are_those_of_transformers(
    scheduler: SchedulerName, model: Path, oracle: GreedyOracle, tmp_path: Path
) -> None:
    """20 conversations and 5 long texts at once, through preemption and an engine's death."""
    files = ModelFiles.open("smollm2")
    assert files.chat_template is not None
    prompts = [
        files.tokenizer.encode(files.chat_template.render(chat), add_special_tokens=False) for chat in chats()
    ]
    prompts += documents(files)
    limits = {"supervision.step_limit_s": 120.0}
    async with running(tmp_path, files, fake=settings(model, scheduler), settings=limits) as daemon:
        outputs = await _through_a_death(daemon, prompts)
        status = await daemon.engine()
        assert status["prefix"]["cached_tokens"] > 0
        assert status["preemptions"] > 0
    verdict = Verdict()
    for prompt, output in zip(prompts, outputs, strict=True):
        verdict += oracle.judge(prompt, output)
    print(f"{scheduler}: {verdict}")
    assert verdict.num_tokens > len(prompts) * NUM_TOKENS / 2


async def _through_a_death(daemon: Running, prompts: list[list[int]]) -> list[list[int]]:
    history, supervisor = daemon.services.history, daemon.services.supervisor
    async with await AsyncClient.connect(daemon.socket_path) as client:
        streams = [asyncio.create_task(_tokens(client, prompt)) for prompt in prompts]
        await eventually(lambda: history.output_tokens > 4 * len(QUESTIONS), "the first tokens", limit_s=600)
        assert supervisor._run is not None
        os.kill(supervisor._run.pid, signal.SIGKILL)
        outputs = await asyncio.gather(*streams)
    assert history.engine_deaths == 1
    return outputs


async def _tokens(client: AsyncClient, prompt: list[int]) -> list[int]:
    stream = client.generate(prompt, temperature=0, max_tokens=NUM_TOKENS, accept_late=True)
    return [token async for item in stream for token in item.token_ids]
