"""Real answers against OpenAI's own schema and our document, which is itself valid OpenAPI."""

import re
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from support.daemon import Running
from support.openai_schema import check_openai, check_ours

from semipd.daemon.servers.http import make_app

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "Whan that"},
    {"prompt": ["Whan that", "x"], "n": 2, "seed": 4},
    {"prompt": [[5, 6], [7]], "logprobs": 3},
    {"prompt": "Whan that Aprille", "logprobs": 1, "echo": True},
    {"prompt": "Whan that Aprille", "logprobs": 1, "echo": True, "max_tokens": 0},
    {"prompt": "Whan that", "return_token_ids": True, "prompt_logprobs": 2, "include_timing": True},
    {
        "prompt": [9],
        "stop_token_ids": list(range(0, 400, 2)),
        "return_tokens_as_token_ids": True,
        "logprobs": 0,
    },
]
CHATS: list[dict[str, Any]] = [
    {"max_tokens": 5},
    {"max_completion_tokens": 5, "n": 3},
    {"max_tokens": 5, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 5, "logprobs": True},
    {"max_tokens": 5, "return_token_ids": True, "prompt_logprobs": 0, "include_timing": True},
]
USAGE: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"continuous_usage_stats": True}},
]


async def test_whole_answers(daemon: Running) -> None:
    for body in COMPLETIONS:
        answer = await daemon.complete(**body)
        check_openai("CreateCompletionResponse", answer)
        check_ours("Completion", answer)
    for body in CHATS:
        answer = await daemon.chat(messages=MESSAGES, **body)
        check_openai("CreateChatCompletionResponse", answer)
        check_ours("ChatCompletion", answer)


@pytest.mark.parametrize("usage", USAGE)
async def test_chunks(daemon: Running, usage: dict[str, Any]) -> None:
    for body in COMPLETIONS:
        for chunk in await daemon.stream(**body, **usage):
            check_openai("CreateCompletionResponse", chunk, is_chunk=True)
            check_ours("Completion", chunk)
    for body in CHATS:
        for chunk in await daemon.stream(CHAT, messages=MESSAGES, **body, **usage):
            check_openai("CreateChatCompletionStreamResponse", chunk)
            check_ours("ChatChunk", chunk)


async def test_models_tokens_and_errors(daemon: Running) -> None:
    async with daemon.http.get(f"{daemon.url}/v1/models") as response:
        listed = await response.json()
    check_openai("ListModelsResponse", listed)
    check_ours("ModelList", listed)
    check_ours("TokenizeAnswer", await daemon.complete("/tokenize", prompt="hi"))
    check_ours("TokenizeAnswer", await daemon.complete("/tokenize", prompt="hi", return_token_strs=True))
    check_ours("DetokenizeAnswer", await daemon.complete("/detokenize", tokens=[4, 5]))
    for path in ("/v1/completions", CHAT, "/tokenize", "/detokenize"):
        for body in ({}, {"model": "other", "prompt": "a", "messages": MESSAGES, "tokens": []}, b"{"):
            status, answer, _ = await daemon.post(body, path)
            assert status in (400, 404), answer
            check_openai("ErrorResponse", answer)
            check_ours("ErrorAnswer", answer)


async def test_our_document_is_valid_and_names_every_route(daemon: Running) -> None:
    async with daemon.http.get(f"{daemon.url}/openapi.json") as response:
        document = await response.json()
    validate(document)
    app = make_app(daemon.services)
    served = {
        (route.method.lower(), re.sub("{[^}]*}", "{}", route.resource.canonical))
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {
        (method, re.sub("{[^}]*}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert described == served
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"prompt", "n", "echo", "logprobs", "stop", "stream_options", "return_token_ids"} <= set(fields)


def _nameless(path: str) -> str:
    return re.sub("{[^}]*}", "{}", path)


def test_the_checks_see() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_openai("CreateCompletionResponse", {"id": "x", "choices": []})
    with pytest.raises(jsonschema.ValidationError):
        check_ours("ErrorAnswer", {"error": {"message": "", "type": "", "param": None, "code": None, "x": 1}})
