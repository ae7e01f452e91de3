"""POST /v1/chat/completions on the fake device, whose output a test can compute."""

from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.fake_answers import FakeAnswers
from support.fake_model import CONTEXT_TOKENS, fake_model, fake_settings

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
RENDERED = (
    "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture
def expected(daemon: Running) -> FakeAnswers:
    return FakeAnswers(daemon.services.generation.model)  # type: ignore[arg-type]


def ids_of(expected: FakeAnswers, rendered: str = RENDERED) -> list[int]:
    return expected.model.tokenizer.encode(rendered, add_special_tokens=False)


async def prompt_of(daemon: Running, **body: Any) -> str:
    """The text that a conversation becomes."""
    answer = await daemon.chat(max_tokens=1, return_token_ids=True, **{"messages": MESSAGES} | body)
    decode = daemon.services.generation.model.tokenizer.decode
    return decode(answer["prompt_token_ids"], skip_special_tokens=False)


async def test_whole_answer(daemon: Running, expected: FakeAnswers) -> None:
    ids = ids_of(expected)
    tokens = expected.tokens(ids, 5, 9, ignore_eos=True)
    body = {"messages": MESSAGES, "seed": 5, "max_tokens": 9, "ignore_eos": True}
    answer = await daemon.chat(model="bytes", **body, return_token_ids=True)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": expected.model.tokenizer.decode(tokens),
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": tokens,
        }
    ]
    assert answer["prompt_token_ids"] == ids
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(ids), 9)


async def test_stream(daemon: Running, expected: FakeAnswers) -> None:
    body = {"messages": MESSAGES, "seed": 5, "max_completion_tokens": 20, "n": 2}
    whole = await daemon.chat(**body)
    events = await daemon.stream(CHAT, **body, stream_options={"include_usage": True})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        deltas = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert all("role" not in delta["delta"] for delta in deltas[1:])
        assert all(delta["logprobs"] is None for delta in deltas)
        assert "".join(delta["delta"].get("content", "") for delta in deltas) == choice["message"]["content"]
        assert [delta["finish_reason"] for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


async def test_choices_have_consecutive_seeds(daemon: Running, expected: FakeAnswers) -> None:
    answer = await daemon.chat(messages=MESSAGES, n=3, seed=8, max_tokens=6, return_token_ids=True)
    ids = ids_of(expected)
    assert [choice["token_ids"] for choice in answer["choices"]] == [
        expected.tokens(ids, seed, 6) for seed in (8, 9, 10)
    ]


async def test_without_a_limit_the_answer_may_fill_the_context(
    daemon: Running, expected: FakeAnswers
) -> None:
    answer = await daemon.chat(messages=MESSAGES, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == CONTEXT_TOKENS
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_logprobs(daemon: Running, expected: FakeAnswers) -> None:
    tokens = expected.tokens(ids_of(expected), 5, 4, ignore_eos=True)
    body = {"messages": MESSAGES, "seed": 5, "max_tokens": 4, "ignore_eos": True, "logprobs": True}
    answer = await daemon.chat(**body, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    token_bytes = expected.model.tokenizer.token_bytes
    assert [bytes(shown["bytes"]) for shown in content] == [token_bytes(token) for token in tokens]
    tops = [[bytes(top["bytes"]) for top in shown["top_logprobs"]] for shown in content]
    assert tops == [[token_bytes(token), token_bytes(token + 1)] for token in tokens]
    events = await daemon.stream(CHAT, **body, top_logprobs=2)
    streamed = [c["logprobs"]["content"] for e in events for c in e["choices"] if c["logprobs"] is not None]
    assert [shown for part in streamed for shown in part] == content
    plain = await daemon.chat(**body)
    assert [shown["top_logprobs"] for shown in plain["choices"][0]["logprobs"]["content"]] == [[]] * 4


async def test_stop_string_and_stop_token(daemon: Running, expected: FakeAnswers) -> None:
    tokens = expected.tokens(ids_of(expected), 5, 30, ignore_eos=True)
    whole = expected.model.tokenizer.decode(tokens)
    stop = whole[len(whole) // 2]
    answer = await daemon.chat(messages=MESSAGES, seed=5, max_tokens=30, stop=stop, ignore_eos=True)
    assert answer["choices"][0]["message"]["content"] == whole.partition(stop)[0]
    assert answer["choices"][0]["stop_reason"] == stop
    own = await daemon.chat(messages=MESSAGES, seed=5, max_tokens=30, stop_token_ids=[tokens[0]])
    assert own["choices"][0]["message"]["content"] == ""
    assert own["choices"][0]["stop_reason"] == tokens[0]


async def test_prompt_logprobs_come_with_the_answer(daemon: Running, expected: FakeAnswers) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, "n": 2, "prompt_logprobs": 0}
    answer = await daemon.chat(**body)
    ids = ids_of(expected)
    assert [list(entry) for entry in answer["prompt_logprobs"][1:]] == [[str(token)] for token in ids[1:]]
    events = await daemon.stream(CHAT, **body)
    assert [e["prompt_logprobs"] for e in events if "prompt_logprobs" in e] == [answer["prompt_logprobs"]]


async def test_contents_become_text(daemon: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in await prompt_of(
        daemon, messages=[{"role": "user", "content": parts}]
    )
    refused = [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]
    assert "assistant\nno<|im_end|>" in await prompt_of(daemon, messages=refused)


async def test_every_role_reaches_the_template(daemon: Running) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    assert await prompt_of(daemon, messages=messages) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n call Rome<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_the_template_can_be_steered(daemon: Running) -> None:
    assert await prompt_of(daemon) == RENDERED
    assert (await prompt_of(daemon, chat_template_kwargs={"thinking": True})).endswith("assistant\n<think>")
    assert (await prompt_of(daemon, add_generation_prompt=False)).endswith("hi<|im_end|>\n")
    begun = [*MESSAGES, {"role": "assistant", "content": " The answer is "}]
    assert (await prompt_of(daemon, messages=begun, continue_final_message=True)).endswith(
        "assistant\nThe answer is"
    )
    twice = await prompt_of(daemon, add_special_tokens=True)
    assert twice == RENDERED, "the template's own BOS is enough"


async def test_a_template_that_knows_developers_sees_them(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ 'dev' if m.role == 'developer' else m.role }}:{{ m.content }}{% endfor %}"
    )
    model = fake_model(tmp_path, chat_template=template)
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        assert await prompt_of(daemon, messages=[{"role": "developer", "content": "a"}]) == "dev:a"


async def test_no_template(tmp_path: Path) -> None:
    model = fake_model(tmp_path, chat_template=None)
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        status, answer, _ = await daemon.post({"messages": MESSAGES}, CHAT)
        assert (status, answer["error"]["code"]) == (400, "no_chat_template")
        assert "/v1/completions" in answer["error"]["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
BAD_BODIES: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "invalid_value", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"content": "a"}]}, "missing_field", "messages"),
    ({"messages": [{"role": "user"}]}, "missing_field", "messages"),
    ({"messages": [{"role": "user", "content": None}]}, "missing_field", "messages"),
    ({"messages": [{"role": "user", "content": 1}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing_field", "messages"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "function", "content": "a", "name": "f"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "unsupported_value", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "unsupported_value", "messages"),
    ({"messages": [{"role": "user", "content": "a" * 5000}]}, "context_length_exceeded", "prompt"),
    ({"tools": [TOOL]}, "unsupported_value", "tools"),
    ({"tool_choice": "required"}, "unsupported_value", "tool_choice"),
    ({"functions": [TOOL["function"]]}, "unsupported_value", "functions"),
    ({"response_format": {"type": "json_object"}}, "unsupported_value", "response_format"),
    ({"audio": {"voice": "alloy", "format": "mp3"}}, "unsupported_value", "audio"),
    ({"modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
    ({"prediction": {"type": "content", "content": "a"}}, "unsupported_value", "prediction"),
    ({"web_search_options": {}}, "unsupported_value", "web_search_options"),
    ({"reasoning_effort": "deep"}, "invalid_value", "reasoning_effort"),
    ({"service_tier": "gold"}, "invalid_value", "service_tier"),
    ({"store": "yes"}, "invalid_value", "store"),
    ({"chat_template": "{{ 1 }}"}, "unsupported_value", "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "invalid_value", "chat_template_kwargs"),
    ({"logprobs": 2}, "invalid_value", "logprobs"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_completion_tokens"),
    ({"max_completion_tokens": CONTEXT_TOKENS}, "context_length_exceeded", "max_tokens"),
    (
        {"add_generation_prompt": True, "continue_final_message": True},
        "invalid_value",
        "continue_final_message",
    ),
    (
        {"messages": [{"role": "assistant", "content": " "}], "continue_final_message": True},
        "invalid_messages",
        "messages",
    ),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_value",
        "include_obfuscation",
    ),
    ({"n": 2.5}, "invalid_value", "n"),
]


async def test_bad_bodies_are_answered(daemon: Running) -> None:
    before = daemon.services.table.totals.copy()
    for body, code, param in BAD_BODIES:
        status, answer, _ = await daemon.post({"messages": MESSAGES} | body, CHAT)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param), (
            body,
            answer,
        )
    assert daemon.services.table.totals["admitted"] == before["admitted"]
    _, answer, _ = await daemon.post({"messages": [{"role": "user", "content": [IMAGE]}]}, CHAT)
    assert "image_url" in answer["error"]["message"]


async def test_what_asks_for_nothing_is_accepted(daemon: Running) -> None:
    inert = {
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "verbosity": "medium",
        "reasoning_effort": None,
    }
    answer = await daemon.chat(messages=MESSAGES, max_tokens=2, **inert, surprise=1)
    assert answer["choices"][0]["finish_reason"]
    assert (await daemon.services.status())["ignored_fields"] == {"surprise": 1}
