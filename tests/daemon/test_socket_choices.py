"""Choices, log-probabilities, echo, tokens and models over the socket: what HTTP says, in items."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from support.daemon import Running, running

from semipd.client import AsyncClient, GenerateStream
from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.peers import Peer
from semipd.daemon.servers import socket_generate
from semipd.daemon.servers.socket_generate import split
from semipd.wire.client_protocol import GenerateItem
from semipd.wire.client_results import Logprobs

LONG = "Whan that Aprille with his shoures soote " * 4


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: Running) -> AsyncIterator[AsyncClient]:
    async with await AsyncClient.connect(daemon.socket_path) as client:
        yield client


async def choices_of(stream: GenerateStream, count: int) -> list[list[GenerateItem]]:
    """Items by choice."""
    choices: list[list[GenerateItem]] = [[] for _ in range(count)]
    items = [item async for item in stream]
    for item in items:
        choices[item.index].append(item)
    assert [item.usage is not None for item in items] == [False] * (len(items) - 1) + [True]
    for choice in choices:
        assert [item.finish_reason is not None for item in choice] == [False] * (len(choice) - 1) + [True]
    return choices


def joined(items: list[GenerateItem], name: str) -> list[Any]:
    """A list of log-probabilities from all items."""
    return [entry for item in items if item.logprobs for entry in getattr(item.logprobs, name)]


@pytest.mark.parametrize("asked", [{"prompt": LONG}, {"messages": [{"role": "user", "content": LONG}]}])
async def test_choices_are_those_of_http(daemon: Running, client: AsyncClient, asked: dict[str, Any]) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "max_tokens": 20, "ignore_eos": True}
    choices = await choices_of(client.generate(**asked, **options), 3)
    path = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
    whole = await daemon.complete(path, **asked, **options)
    texts = [choice.get("text", choice.get("message", {}).get("content")) for choice in whole["choices"]]
    assert ["".join(item.text for item in items) for items in choices] == texts
    [usage] = [item.usage for items in choices for item in items if item.usage is not None]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == whole["usage"][name]


async def test_details_are_those_of_http(daemon: Running, client: AsyncClient) -> None:
    asked: dict[str, Any] = {
        "prompt": LONG,
        "max_tokens": 12,
        "seed": 3,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    asked |= {"logprobs": 4, "prompt_logprobs": 2, "echo": True, "n": 2}
    choices = await choices_of(client.generate(**asked), 2)
    whole = await daemon.complete(**asked)
    for items, choice in zip(choices, whole["choices"], strict=True):
        assert "".join(item.text for item in items) == choice["text"]
        for name, entries in choice["logprobs"].items():
            assert joined(items, name) == entries
        told = [entry for item in items for entry in item.prompt_logprobs or ()]
        assert told == choice["prompt_logprobs"]
        assert [token for item in items for token in item.prompt_token_ids or ()] == choice[
            "prompt_token_ids"
        ]
        assert [token for item in items for token in item.token_ids] == choice["token_ids"]
        assert items[-1].stop_reason == choice["stop_reason"]


async def test_log_probabilities_of_an_answer_begin_with_it(daemon: Running, client: AsyncClient) -> None:
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "é"}],
        "seed": 3,
        "max_tokens": 8,
        "ignore_eos": True,
    }
    [items] = await choices_of(client.generate(**asked, logprobs=2), 1)
    whole = await daemon.chat(**asked, logprobs=True, top_logprobs=2)
    told = [entry["logprob"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert joined(items, "token_logprobs") == told
    assert joined(items, "text_offset")[0] == 0


async def test_only_the_prompt(client: AsyncClient) -> None:
    [items] = await choices_of(client.generate("ab", max_tokens=0, echo=True, logprobs=1), 1)
    assert "".join(item.text for item in items) == "ab"
    assert items[-1].finish_reason == "length"
    assert [token for item in items for token in item.token_ids] == []
    assert len(joined(items, "tokens")) > 1


async def test_who_asks_for_nothing_new_sees_nothing_new(client: AsyncClient) -> None:
    seen: list[dict[str, Any]] = []
    request_id = client.generate("ab", max_tokens=6, ignore_eos=True, seed=1).id
    while not seen or "usage" not in seen[-1]:
        seen.append(await client._answer(request_id))
    for item in seen[:-1]:
        assert set(item) == {"id", "text", "token_ids"}
    assert set(seen[-1]) == {"id", "text", "token_ids", "finish_reason", "usage"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"model": "other"}, "model_not_found", "model"),
        ({"add_generation_prompt": True}, "invalid_value", "add_generation_prompt"),
        ({"stream": True}, "unknown_field", "stream"),
        ({"messages": [{"role": "user", "content": "a"}], "echo": True}, "unsupported_value", "echo"),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "invalid_value",
            "continue_final_message",
        ),
    ],
)
async def test_what_is_refused(client: AsyncClient, fields: dict[str, Any], code: str, param: str) -> None:
    prompt = None if "messages" in fields else "a"
    with pytest.raises(SemipdError) as refused:
        await anext(client.generate(prompt, **fields))
    assert (refused.value.code, refused.value.param) == (code, param)


async def test_whole_numbers_may_be_floats(client: AsyncClient) -> None:
    choices = await choices_of(
        client.generate(cast(Any, [5.0, 6.0]), n=2.0, max_tokens=3.0, logprobs=0.0, seed=1.0), 2
    )
    assert len(choices) == 2


async def test_cancel_ends_all_choices(tmp_path: Path) -> None:
    async with running(tmp_path, step_ms=5) as daemon:
        async with await AsyncClient.connect(daemon.socket_path) as client:
            stream = client.generate([97], max_tokens=4000, n=4)
            first = await anext(stream)
            await anext(stream)
            assert await stream.cancel()
            items = [first, *[item async for item in stream]]
            ends = {item.index: item.finish_reason for item in items if item.finish_reason}
            assert ends == dict.fromkeys(range(4), "cancelled")
            early = client.generate([98], max_tokens=4000, n=4)
            await early.cancel()
            items = [item async for item in early]
            assert {item.index for item in items if item.finish_reason == "cancelled"} == set(range(4))
            left = client.generate([99], max_tokens=4000, n=3)
            await anext(left)
        await daemon.engine_says(lambda status: status["live"] == 0)
        assert len(daemon.services.table) == 0


async def test_tokens_and_models(daemon: Running, client: AsyncClient) -> None:
    messages = [{"role": "user", "content": "né"}]
    for body in ({"prompt": "né", "return_token_strs": True}, {"messages": messages}):
        tokens = await client.tokenize(**body)
        whole = await daemon.complete("/tokenize", **body)
        assert (tokens.token_ids, tokens.count) == (whole["tokens"], whole["count"])
        assert (tokens.token_strs, tokens.max_model_len) == (whole["token_strs"], whole["max_model_len"])
    assert (
        await client.detokenize([*tokens.token_ids])
        == (await daemon.complete("/detokenize", tokens=tokens.token_ids))["prompt"]
    )
    [model] = await client.models()
    assert (model.id, model.max_model_len) == ("bytes", tokens.max_model_len)
    for wrong in ({}, {"prompt": "a", "messages": messages}, {"prompt": "a", "add_generation_prompt": True}):
        with pytest.raises(SemipdError) as refused:
            await client.tokenize(**wrong)
        assert refused.value.code == "invalid_value"
    with pytest.raises(SemipdError) as refused:
        await client.detokenize([10**6])
    assert refused.value.param == "tokens"


async def test_a_guest_learns_what_is_here(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await AsyncClient.connect(daemon.socket_path) as own:
        assert own.greeting.role == "operator"
        assert "shutdown" in own.greeting.operations
    daemon.services.auth.guests_gid = 4321
    monkeypatch.setattr(peers, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({4321})))
    async with await AsyncClient.connect(daemon.socket_path) as guest:
        greeting = guest.greeting
        [model] = await guest.models()
        assert (greeting.model, greeting.max_model_len) == (model.id, model.max_model_len)
        assert greeting.role == "guest"
        assert greeting.operations == ["generate", "cancel", "tokenize", "detokenize", "models", "requests"]
        assert greeting.limits["frame_bytes"] == 2**22
        assert (await guest.tokenize("a")).count


async def test_long_details_come_in_parts(
    daemon: Running, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"prompt": LONG, "max_tokens": 8, "seed": 3, "echo": True, "logprobs": 3, "n": 1}
    [whole] = await choices_of(client.generate(**asked), 1)
    monkeypatch.setattr(socket_generate, "INLINE_LOGPROBS", 30)
    monkeypatch.setitem(socket_generate._MOST, "text", 10)
    [parts] = await choices_of(client.generate(**asked), 1)
    assert len(parts) > len(whole)
    assert "".join(item.text for item in parts) == "".join(item.text for item in whole)
    for name in Logprobs.__dataclass_fields__:
        assert joined(parts, name) == joined(whole, name)


def test_parts_say_what_the_whole_says() -> None:
    item = {"id": 1, "text": "x" * 600_000, "token_ids": list(range(70_000)), "index": 2}
    parts = list(split(item, {"finish_reason": "stop"}, 2))
    assert "".join(part["text"] for part in parts) == item["text"]
    assert [token for part in parts for token in part["token_ids"]] == item["token_ids"]
    assert [part.get("finish_reason") for part in parts] == [None, None, "stop"]
    assert {part["index"] for part in parts} == {2}
