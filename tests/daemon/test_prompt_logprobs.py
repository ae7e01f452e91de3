"""prompt_logprobs: true ranks, and the whole vocabulary within a bound."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until

from semipd.config.config import default_engine_settings
from semipd.daemon.requests import generation
from semipd.daemon.requests import logprob_limits as alternatives
from semipd.daemon.requests.logprob_limits import MAX_ANSWER_ALTERNATIVES

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def checked_rows(rows: list[Any], prompt: list[int], vocab_size: int) -> None:
    assert rows[0] is None
    assert len(rows) == len(prompt)
    for row, token in zip(rows[1:], prompt[1:], strict=True):
        assert {int(token_id) for token_id in row} == set(range(vocab_size))
        assert next(iter(row)) == str(token)
        ranks = sorted(shown["rank"] for shown in row.values())
        assert ranks == list(range(1, vocab_size + 1))


async def test_the_whole_vocabulary(daemon: Running) -> None:
    """400 tokens: short prompts are written in one piece, long ones row by row."""
    vocab_size = daemon.services.generation.limits.vocab_size
    for prompt in ([5, 6, 7], list(range(4, 44))):
        asked = {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": -1}
        answer = await daemon.complete(**asked)
        rows = answer["choices"][0]["prompt_logprobs"]
        checked_rows(rows, prompt, vocab_size)
        events = await daemon.stream(**asked)
        assert [
            e["choices"][0]["prompt_logprobs"] for e in events if "prompt_logprobs" in e["choices"][0]
        ] == [rows]
    answer = await daemon.chat(messages=MESSAGES, max_tokens=1, prompt_logprobs=-1, return_token_ids=True)
    checked_rows(answer["prompt_logprobs"], answer["prompt_token_ids"], vocab_size)
    both = await daemon.complete(
        prompt=[5, 6, 7], max_tokens=1, prompt_logprobs=-1, logprobs=2, echo=True, n=2
    )
    assert [len(choice["prompt_logprobs"][1]) for choice in both["choices"]] == [vocab_size] * 2
    assert len(both["choices"][0]["logprobs"]["top_logprobs"][1]) == 2


async def test_the_bound_names_the_numbers(tmp_path: Path) -> None:
    settings = default_engine_settings(device="fake", max_model_len=2048)
    async with running(tmp_path, fake=settings) as daemon:
        vocab_size = daemon.services.generation.limits.vocab_size
        fitting = MAX_ANSWER_ALTERNATIVES // vocab_size + 1
        for body in (
            {"prompt": [5] * (fitting + 1)},
            {"prompt": [[5] * (fitting // 2)] * 3},
            {"prompt": [5] * (fitting // 2 + 2), "n": 2},
        ):
            status, answer, _ = await daemon.post(body | {"max_tokens": 1, "prompt_logprobs": -1})
            assert (status, answer["error"]["param"]) == (400, "prompt_logprobs"), answer
            assert str(MAX_ANSWER_ALTERNATIVES) in answer["error"]["message"]
            assert str(vocab_size) in answer["error"]["message"]
        assert daemon.services.table.totals["admitted"] == 0
        daemon.services.admission.check_integrity()
        # those that want few alternatives are not concerned unless there are many
        answer = await daemon.complete(prompt=[5] * 1500, max_tokens=1, prompt_logprobs=20, n=2)
        assert len(answer["choices"][1]["prompt_logprobs"]) == 1500


async def test_others_are_served_beside_the_largest_answer(tmp_path: Path) -> None:
    """A tenth of what is allowed, in more than one message and one step of the engine."""
    settings = default_engine_settings(device="fake", max_model_len=2048)
    async with running(tmp_path, fake=settings) as daemon:
        vocab_size = daemon.services.generation.limits.vocab_size
        prompt = [idx % 900 for idx in range(MAX_ANSWER_ALTERNATIVES // vocab_size // 10)]
        asking = asyncio.create_task(daemon.complete(prompt=prompt, max_tokens=1, prompt_logprobs=-1))
        others = 0
        while not asking.done():
            await daemon.complete(prompt=[7, 8], max_tokens=1, prompt_logprobs=1)
            others += 1
        rows = (await asking)["choices"][0]["prompt_logprobs"]
        assert others > 3
        assert [len(row) for row in rows[1:]] == [vocab_size] * (len(prompt) - 1)
        await daemon.engine_says(lambda seen: seen["kv"]["used_blocks"] == 0)


async def test_all_such_answers_together_are_bounded(
    daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound counts from admission to the last byte, however the answer ends."""
    held = daemon.services.generation.alternatives
    monkeypatch.setattr(alternatives, "MAX_HELD_ALTERNATIVES", 5000)
    body = {"prompt": list(range(4, 14)), "prompt_logprobs": -1, "ignore_eos": True}
    going = asyncio.create_task(daemon.post(body | {"max_tokens": 1000}, **{"X-Request-ID": "first"}))
    await until(lambda: held.total == 10 * 401)
    status, answer, response = await daemon.post(body | {"max_tokens": 1})
    assert (status, answer["error"]["code"], response.headers["Retry-After"]) == (503, "overloaded", "5")
    assert "5000" in answer["error"]["message"]
    status, answer, _ = await daemon.post({"prompt": [5] * 10, "max_tokens": 50, "logprobs": 19})
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    await daemon.complete(prompt=[5, 6], max_tokens=1, prompt_logprobs=20)
    daemon.services.cancel_named("first")
    await going
    assert held.total == 0
    for stream in (False, True):
        await (daemon.stream if stream else daemon.complete)(**body, max_tokens=1)
        assert held.total == 0
    assert (await daemon.post(body | {"max_tokens": 5000}))[0] == 400
    assert held.total == 0
    daemon.services.admission.check_integrity()


async def test_every_log_probability_of_an_answer_counts(tmp_path: Path) -> None:
    """Per choice those of its prompt, of each list; of what is generated, unless it leaves as it comes."""
    settings = default_engine_settings(device="fake", max_model_len=2048)
    async with running(tmp_path, fake=settings) as daemon:
        messages = {"messages": MESSAGES, "logprobs": True, "max_tokens": 1000}
        of_prompt, generated = "prompt_logprobs", "logprobs"
        for body, param, total in (
            ({"prompt": [5] * 2000, "max_tokens": 1, of_prompt: 20, "n": 128}, of_prompt, 2000 * 21 * 128),
            (
                {"prompt": [5] * 1000, "max_tokens": 0, generated: 15, "echo": True, "n": 128},
                of_prompt,
                2048000,
            ),
            ({"prompt": [5] * 10, "max_tokens": 2000, generated: 20, "n": 128}, generated, 2000 * 21 * 128),
            ({"prompt": [[5] * 10] * 64, "max_tokens": 1500, generated: 20}, generated, 64 * 1500 * 21),
            (messages | {"top_logprobs": 20, "n": 64}, generated, 1000 * 21 * 64),
        ):
            status, answer, _ = await daemon.post(body, COMPLETIONS if "prompt" in body else CHAT)
            error = answer["error"]
            assert (status, error["code"], error["param"]) == (400, "invalid_value", param)
            assert str(total) in error["message"]
        assert daemon.services.table.totals["admitted"] == 0
        await daemon.complete(prompt=[[5] * 200] * 64, max_tokens=1, logprobs=1, echo=True)
        streamed = {"prompt": [5] * 10, "max_tokens": 1900, "logprobs": 20, "n": 30}
        assert (await daemon.post(streamed))[0] == 400
        # the stream may end early, but it begins
        await daemon.stream(**streamed, stop=list("abcdefghijklmnopqrstuvwxyz "))
        await until(lambda: daemon.services.generation.alternatives.total == 0)


async def test_an_answer_without_a_limit_counts_as_it_grows(
    daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "EXPECTED_TOKENS", 10)
    monkeypatch.setattr(alternatives, "MAX_ANSWER_ALTERNATIVES", 600)
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    status, answer, _ = await daemon.post(body, CHAT)
    assert (status, answer["error"]["code"]) == (400, "answer_too_large")
    assert 20 < len(answer["partial"]["choices"][0]["token_ids"]) < 60
    assert daemon.services.generation.alternatives.total == 0
