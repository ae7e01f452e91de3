"""Lane workers of a daemon are killed under 16 streams, on the CPU device with a tiny fp32 checkpoint."""

import asyncio
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.eventually import eventually
from support.oracle import GreedyOracle, Verdict
from support.tiny_models import tiny_checkpoint

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.daemon.model.files import ModelFiles

MAX_TOKENS = 150
LIMIT_S = 60.0
"""For a worker to start: torch is imported."""


async def over_http(daemon: Running, prompt: list[int], **options: Any) -> list[int]:
    events = await daemon.stream(prompt=prompt, return_token_ids=True, **options)
    return [token for event in events for choice in event["choices"] for token in choice["token_ids"]]


async def over_socket(client: AsyncClient, prompt: list[int], **options: Any) -> list[int]:
    return [token async for item in client.generate(prompt, **options) for token in item.token_ids]


@pytest.mark.soak  # see also engine/test_worker_restart_cpu.py
async def test_killed_workers_are_replaced_under_sixteen_streams(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_checkpoint(tmp_path_factory, "llama")
    settings = default_engine_settings(
        model_dir=str(folder), dtype="float32", max_num_seqs=16, max_num_blocks=400
    )
    rng = random.Random(4)
    prompts = [[rng.randrange(2, 400) for _ in range(rng.randint(3, 120))] for _ in range(16)]
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    async with (
        running(tmp_path, ModelFiles.open(str(folder)), fake=settings) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        history = daemon.services.history
        streams = [asyncio.create_task(over_http(daemon, prompt, **greedy)) for prompt in prompts[:10]]
        streams += [asyncio.create_task(over_socket(client, prompt, **greedy)) for prompt in prompts[10:]]
        await eventually(
            lambda: sum(record.output_tokens > 2 for record in history.records("live")) >= 8, "streams"
        )
        pids = {lane: worker["pid"] for lane, worker in (await workers(daemon)).items()}
        residents = {parent_of(pid) for pid in pids.values()}
        for lane in ("decode", "prefill"):
            os.kill(pids[lane], signal.SIGKILL)
            await eventually(
                partial(lambda lane: history.worker_deaths[lane] == 1, lane), "the death is known"
            )
            async with asyncio.timeout(LIMIT_S):
                while restarts(await daemon.engine(), lane) == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        outputs = await asyncio.gather(*streams)
        after = {lane: worker["pid"] for lane, worker in (await workers(daemon)).items()}
        assert not set(after.values()) & set(pids.values())
        assert {parent_of(pid) for pid in after.values()} == residents, "the engine process is another"
        assert history.worker_deaths == {"prefill": 1, "decode": 1}
        assert (history.engine_deaths, history.resumptions) == (0, 0)
        await daemon.engine_says(lambda engine: engine["kv"]["used_blocks"] == 0)
        async with daemon.http.get(f"{daemon.url}/metrics") as answer:
            assert 'semipd:worker_deaths_total{lane="decode"} 1.0' in await answer.text()
    assert [len(output) for output in outputs] == [MAX_TOKENS] * 16
    oracle = GreedyOracle(folder)
    verdict = sum(map(oracle.judge, prompts, outputs), start=Verdict())
    print(f"{verdict.num_tokens} tokens, {verdict.num_deviations} decided by the tolerance")


async def workers(daemon: Running) -> dict[str, Any]:
    found: dict[str, Any] = (await daemon.engine())["device"]["workers"]
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def restarts(engine: dict[str, Any], lane: str) -> int:
    count: int = engine["device"]["workers"][lane]["restarts"]
    return count
