"""The public `openai` package, asynchronous and blocking, against our server on the fake device."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types import Completion
from support.daemon import MAX_BODY_BYTES, Running, running
from support.fake_answers import FakeAnswers

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def expected(daemon: Running) -> FakeAnswers:
    return FakeAnswers(daemon.services.generation.model)  # type: ignore[arg-type]


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["bytes"]
    assert (await client.models.retrieve("bytes")).owned_by == "semipd"


async def test_completions(client: AsyncOpenAI, expected: FakeAnswers) -> None:
    whole = await client.completions.create(model="bytes", prompt=["x", "y"], n=2, seed=3, max_tokens=7)
    wanted = [expected.text(prompt, seed, 7) for prompt in ("x", "y") for seed in (3, 4)]
    assert [choice.text for choice in whole.choices] == wanted
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 4
    assert whole.usage.prompt_tokens_details is not None
    stream = await client.completions.create(
        model="bytes",
        prompt=["x", "y"],
        n=2,
        seed=3,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts = [""] * 4
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == wanted
    assert chunk.usage == whole.usage


async def test_completion_logprobs_and_echo(client: AsyncOpenAI, expected: FakeAnswers) -> None:
    answer = await client.completions.create(
        model="bytes", prompt="Whan that", max_tokens=1, logprobs=2, echo=True, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.tokens[:3] == ["<s>", "Whan", " that"]
    assert logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert answer.choices[0].text.startswith("Whan that")


async def test_chat(client: AsyncOpenAI, expected: FakeAnswers) -> None:
    async def ask(**more: Any) -> Any:
        return await client.chat.completions.create(
            model="bytes", messages=MESSAGES, seed=3, max_completion_tokens=9, **more
        )

    whole = await ask(n=2, logprobs=True, top_logprobs=1)
    again = await ask(n=2)
    assert [choice.message.content for choice in again.choices] == [c.message.content for c in whole.choices]
    assert whole.choices[0].message.content != whole.choices[1].message.content
    content = whole.choices[0].logprobs.content
    assert len(content) <= 9
    assert content[0].top_logprobs[0].logprob == -0.5
    stop = whole.choices[0].message.content[2]
    stopped = await ask(stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == whole.choices[0].message.content.partition(stop)[0]


async def test_chat_stream_helper_accumulates(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="bytes", messages=MESSAGES, seed=1, max_tokens=12)
    text = whole.choices[0].message.content
    assert text is not None
    # the helper takes the end by length for a failure
    stop = text[-1]
    async with client.chat.completions.stream(
        model="bytes",
        messages=MESSAGES,
        seed=1,
        max_tokens=12,
        stop=stop,
        stream_options={"include_usage": True},
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == text.partition(stop)[0]
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None


async def test_seeds_reproduce(client: AsyncOpenAI) -> None:
    async def text(**more: Any) -> str:
        answer: Completion = await client.completions.create(model="bytes", prompt="x", max_tokens=12, **more)
        return answer.choices[0].text

    assert await text(seed=5) == await text(seed=5) != await text(seed=6)
    assert await text() != await text()


@pytest.mark.parametrize("chat", [False, True])
async def test_closing_the_stream_cancels_in_the_engine(
    daemon: Running, client: AsyncOpenAI, chat: bool
) -> None:
    before = daemon.services.table.totals.copy()
    common: dict[str, Any] = {"model": "bytes", "n": 2, "stream": True, "extra_body": {"ignore_eos": True}}
    if chat:
        stream: Any = await client.chat.completions.create(messages=MESSAGES, **common)
    else:
        stream = await client.completions.create(prompt="x", max_tokens=1000, **common)
    seen: set[int] = set()
    async for chunk in stream:
        seen.add(chunk.choices[0].index)
        if len(seen) == 2:
            break
    await stream.close()
    status = await daemon.engine_says(lambda status: status["requests"]["decoding"] == 0)
    assert status["kv"]["used_blocks"] == 0
    assert daemon.services.table.totals["cancelled"] == before["cancelled"] + 2


async def test_error_classes(daemon: Running, client: AsyncOpenAI) -> None:
    async def refused(kind: type[openai.APIStatusError], **body: Any) -> openai.APIStatusError:
        with pytest.raises(kind) as caught:
            await client.completions.create(**{"model": "bytes", "prompt": "a"} | body)
        return caught.value

    assert (await refused(openai.NotFoundError, model="other")).code == "model_not_found"
    error = await refused(openai.BadRequestError, suffix="x")
    assert (error.code, error.param, error.type) == ("unsupported_value", "suffix", "invalid_request_error")
    assert (await refused(openai.BadRequestError, max_tokens=-1)).param == "max_tokens"
    assert (await refused(openai.BadRequestError, prompt=[1] * 2000)).code == "context_length_exceeded"
    assert (await refused(openai.APIStatusError, prompt="a" * MAX_BODY_BYTES)).status_code == 413
    tool: Any = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="bytes", messages=MESSAGES, tools=[tool])
    assert caught.value.code == "unsupported_value"


async def test_an_engine_that_is_not_ready_is_a_server_error(tmp_path: Path) -> None:
    async with (
        running(tmp_path, start=False) as daemon,
        AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="bytes", prompt="a")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_not_ready")


async def test_an_engine_that_dies_in_mid_stream_is_an_api_error(tmp_path: Path) -> None:
    async with (
        running(tmp_path, crash_on=9, step_ms=20) as daemon,
        AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.completions.create(model="bytes", prompt=[9, 97], max_tokens=100, stream=True)
        with pytest.raises(openai.APIError) as caught:
            await _drain(stream)
    assert caught.value.code == "engine_crashed"


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_an_operator_who_cancels_is_an_error_without_retry(
    daemon: Running, client: AsyncOpenAI
) -> None:
    before = daemon.services.table.totals.copy()
    asking = asyncio.create_task(
        client.with_options(max_retries=5).completions.create(
            model="bytes",
            prompt="x",
            max_tokens=1000,
            extra_body={"ignore_eos": True},
            extra_headers={"X-Request-ID": "mine"},
        )
    )
    await daemon.engine_says(lambda status: status["requests"]["decoding"] == 1)
    assert daemon.services.table.cancel_named("mine") == 1
    with pytest.raises(openai.APIStatusError) as caught:
        await asking
    assert caught.value.code == "request_cancelled"
    assert daemon.services.table.totals["admitted"] == before["admitted"] + 1


async def test_the_blocking_client(daemon: Running, expected: FakeAnswers) -> None:
    before = daemon.services.table.totals.copy()

    def work() -> None:
        with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
            whole = client.completions.create(model="bytes", prompt=[5, 6], seed=1, max_tokens=8)
            assert whole.choices[0].text == expected.text([5, 6], 1, 8)
            with client.completions.create(
                model="bytes", prompt=[5, 6], seed=1, max_tokens=8, stream=True
            ) as stream:
                assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
            chat = client.chat.completions.create(model="bytes", messages=MESSAGES, seed=1, max_tokens=8)
            with client.chat.completions.create(
                model="bytes", messages=MESSAGES, seed=1, max_tokens=8, stream=True
            ) as chunks:
                parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert "".join(parts) == chat.choices[0].message.content
            stream = client.completions.create(
                model="bytes", prompt="x", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(stream))
            stream.close()
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("other")

    await asyncio.to_thread(work)
    await daemon.engine_says(lambda status: status["requests"]["decoding"] == 0)
    assert daemon.services.table.totals["cancelled"] == before["cancelled"] + 1
