"""The public `openai` client against our server."""

from pathlib import Path

import openai
import pytest
from support.daemon import running


async def test_completions_with_and_without_stream(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as daemon,
        openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["bytes"]
        whole = await client.completions.create(model="bytes", prompt=[104, 105], max_tokens=6, stop=["ih"])
        assert whole.choices[0].text == "h"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 0  # type: ignore[attr-defined]
        stream = await client.completions.create(
            model="bytes",
            prompt=[104, 105],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hihihi"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_errors_are_the_clients_own(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as daemon,
        openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="other", prompt="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="bytes", prompt="a", suffix="x")
        assert (refused.value.code, refused.value.param) == ("unsupported_value", "suffix")
