"""Processes of the CPU device, killed and stopped under 16 greedy streams; the oracle is transformers."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.eventually import eventually
from support.oracle import GreedyOracle, Verdict
from support.tiny_models import tiny_checkpoint

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.settings import EngineSettings
from semipd.daemon.model.files import ModelFiles

MAX_TOKENS = 64
NUM_STREAMS = 16


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory, "qwen3")


def settings(folder: Path) -> EngineSettings:
    return default_engine_settings(
        device="cpu",
        model_dir=str(folder),
        dtype="float32",
        max_model_len=256,
        max_num_blocks=200,
        prefill_chunk_tokens=32,
    )


def prompts() -> list[list[int]]:
    """Half of them begin with the same tokens; some need several chunks."""
    common = [(7 * i) % 300 for i in range(40)]
    return [
        (common if n % 2 else []) + [(n * i) % 350 for i in range(1, 4 + 6 * n)] for n in range(NUM_STREAMS)
    ]


async def over_http(daemon: Running, prompt: list[int]) -> list[int]:
    body: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    events = await daemon.stream(prompt=prompt, return_token_ids=True, **body)
    return [token for event in events for choice in event["choices"] for token in choice["token_ids"]]


async def over_socket(client: AsyncClient, prompt: list[int]) -> list[int]:
    stream = client.generate(prompt, temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    return [token async for item in stream for token in item.token_ids]


def engine_killed(engine: int, worker: int) -> None:
    os.kill(engine, signal.SIGKILL)


def engine_stopped(engine: int, worker: int) -> None:
    os.kill(engine, signal.SIGSTOP)


def worker_stopped(engine: int, worker: int) -> None:
    """The coordinator goes on answering; only a step that never ends gives it away."""
    os.kill(worker, signal.SIGSTOP)


@pytest.mark.parametrize(
    "strike",
    [
        engine_killed,
        pytest.param(worker_stopped, marks=pytest.mark.soak),
        pytest.param(engine_stopped, marks=pytest.mark.soak),
    ],
)
async def test_streams_go_on_as_the_oracle_says(
    tmp_path: Path, folder: Path, strike: Callable[[int, int], None]
) -> None:
    limits = {
        "supervision.interval_s": 0.1,
        "supervision.answer_limit_s": 3.0,
        "supervision.step_limit_s": 5.0,
    }
    model = ModelFiles.open(str(folder))
    async with (
        running(tmp_path, model, fake=settings(folder), settings=limits) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        history, supervisor = daemon.services.history, daemon.services.supervisor
        streams = [
            asyncio.create_task(over_socket(client, prompt) if n % 2 else over_http(daemon, prompt))
            for n, prompt in enumerate(prompts())
        ]
        await eventually(lambda: history.output_tokens > 8 * NUM_STREAMS, "tokens of most streams")
        assert supervisor._run is not None
        worker = (await supervisor.status(20))["device"]["workers"]["decode"]["pid"]
        strike(supervisor._run.pid, worker)
        await eventually(lambda: history.engine_deaths == 1, "the death is noticed")
        outputs = await asyncio.gather(*streams)
    oracle, verdict = GreedyOracle(folder), Verdict()
    for prompt, output in zip(prompts(), outputs, strict=True):
        assert len(output) == MAX_TOKENS
        verdict += oracle.judge(prompt, output)
    assert history.resumptions >= NUM_STREAMS // 2
    print(f"{strike.__name__}: {verdict}")
