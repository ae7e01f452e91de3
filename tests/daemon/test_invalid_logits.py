"""Requests without valid logits, seen from outside: an error of their own; the same engine serves the rest.

On the fake device a checkpoint's configuration names poison tokens; on the CPU a real checkpoint has a row of
NaN in its embedding.
"""

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.fake_model import fake_model, fake_settings
from support.tiny_models import tiny_checkpoint

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.daemon.model.files import ModelFiles
from semipd.devices.fake import expected_tokens

BAD = 7
FIRST = 0
"""The token that a trial before serving would take first."""

VOCAB = 400


def poisoned_fake(folder: Path) -> ModelFiles:
    folder.mkdir()
    fake_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"poison_token_ids": [BAD]}))
    return ModelFiles.open(str(folder))


async def complete(daemon: Running, prompt: list[int], **body: Any) -> tuple[int, Any]:
    fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "seed": 1}
    status, answer, _ = await daemon.post({"prompt": prompt, "max_tokens": 12} | fixed | body)
    return status, answer


def tokens_of(answer: Any) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


async def raw_stream(daemon: Running, prompt: list[int], **body: Any) -> list[str]:
    sent = {"prompt": prompt, "max_tokens": 400, "stream": True, "ignore_eos": True, "seed": 1} | body
    async with daemon.http.post(daemon.url + "/v1/completions", json=sent) as response:
        return [
            part.removeprefix("data: ") for part in (await response.read()).decode().split("\n\n") if part
        ]


async def collect(stream: AsyncIterator[Any], received: list[int]) -> None:
    async for item in stream:
        received += item.token_ids


def streamed_poison(model: ModelFiles) -> tuple[list[int], int]:
    """A prompt of good tokens whose output meets the poison, and how many tokens it emits."""
    for first in range(20, 200):
        prompt = [first, 11, 12]
        found = expected_tokens(prompt, SamplingParams(400, seed=1), 1024, VOCAB)
        if BAD in found[:300]:
            return prompt, found.index(BAD) + 1
    raise AssertionError("no such prompt")


async def test_one_request_fails_and_nothing_else_notices(tmp_path: Path) -> None:
    model = poisoned_fake(tmp_path / "model")
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        good = [[n, 20, 21] for n in range(30, 46)]
        alone = [tokens_of((await complete(daemon, prompt))[1]) for prompt in good]
        bad = [complete(daemon, [30, BAD, n], logprobs=2) for n in range(10)]
        both = await asyncio.gather(*(complete(daemon, prompt) for prompt in good), *bad)
        assert [tokens_of(answer) for _, answer in both[: len(good)]] == alone
        for status, answer in both[len(good) :]:
            error = answer["error"]
            assert (status, error["code"], error["type"]) == (500, "invalid_logits", "server_error")
            assert "engine.dtype" in error["message"]
            assert "partial" not in answer
        table = daemon.services.table
        assert (daemon.services.supervisor.num_restarts, table.num_suspects, len(table)) == (0, 0, 0)
        _, listed, _ = await daemon.ask("GET", "/v1/requests")
        ends = [(record["finish_reason"], record["error_code"]) for record in listed["data"]]
        assert ends.count(("error", "invalid_logits")) == len(bad)
        assert ends.count(("length", None)) == 2 * len(good)
        _, metrics, _ = await daemon.ask("GET", "/metrics")
        assert re.search(rf"vllm:request_success_total{{[^}}]*error[^}}]*}} {len(bad)}\b", metrics)


async def test_a_stream_ends_with_what_it_had_and_the_error(tmp_path: Path) -> None:
    model = poisoned_fake(tmp_path / "model")
    prompt, count = streamed_poison(model)
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        parts = [json.loads(part) for part in await raw_stream(daemon, prompt, return_token_ids=True)]
        assert parts[-1]["error"]["code"] == "invalid_logits"
        told = [token for part in parts[:-1] for choice in part["choices"] for token in choice["token_ids"]]
        assert (len(told), told[-1]) == (count, BAD)
        status, answer = await complete(daemon, prompt, max_tokens=400)
        assert (status, answer["error"]["code"]) == (500, "invalid_logits")
        assert answer["partial"]["choices"][0]["token_ids"] == told
        async with await AsyncClient.connect(daemon.socket_path) as client:
            stream = client.generate(prompt, max_tokens=400, ignore_eos=True, seed=1)
            received = list[int]()
            with pytest.raises(SemipdError, match="no valid logits") as raised:
                await collect(stream, received)
            assert (raised.value.code, received) == ("invalid_logits", told)


def poisoned_checkpoint(source: Path, folder: Path, name: str, row: Any, value: float) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][row] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def cpu_settings(folder: Path) -> EngineSettings:
    return default_engine_settings(
        device="cpu",
        model_dir=str(folder),
        dtype="float32",
        max_model_len=128,
        max_num_blocks=40,
        prefill_chunk_tokens=32,
    )


async def test_a_real_checkpoint_with_a_bad_row(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A pool of 39 blocks: those that held NaN are handed out again and again."""
    source = tiny_checkpoint(tmp_path_factory, "qwen3")
    folder = poisoned_checkpoint(source, tmp_path / "m", "model.embed_tokens.weight", FIRST, math.nan)
    model = ModelFiles.open(str(folder))
    prefix = list(range(20, 62))
    async with running(tmp_path, model, fake=cpu_settings(folder)) as daemon:
        good = [[*prefix[: 8 * (n % 6)], n, 20, 21] for n in range(100, 112)]
        banned = {"logit_bias": {str(FIRST): -100}}
        alone = [answer for _, answer in await asyncio.gather(*(complete(daemon, p, **banned) for p in good))]
        for _ in range(2):
            bad = [[*prefix[:n], FIRST, *prefix] for n in (0, 15, 30, 42)]
            both = await asyncio.gather(
                *(complete(daemon, prompt, prompt_logprobs=1) for prompt in bad),
                *(complete(daemon, prompt, logprobs=2, **banned) for prompt in good),
            )
            for status, answer in both[: len(bad)]:
                assert (status, answer["error"]["code"]) == (500, "invalid_logits"), answer
            assert [tokens_of(answer) for _, answer in both[len(bad) :]] == [*map(tokens_of, alone)]
        assert daemon.services.supervisor.num_restarts == 0


async def test_a_checkpoint_that_never_has_logits_is_refused_at_the_start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny_checkpoint(tmp_path_factory, "qwen3")
    folder = poisoned_checkpoint(source, tmp_path / "m", "model.norm.weight", slice(None), math.nan)
    model = ModelFiles.open(str(folder))
    with pytest.raises(
        SemipdError, match="in float32 they hold NaN or infinity for each of 17 trial"
    ) as raised:
        async with running(tmp_path, model, fake=cpu_settings(folder)):
            pass
    assert raised.value.code == "invalid_logits"
