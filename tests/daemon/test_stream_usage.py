"""Usage in the chunks of a stream: each counts what has been sent up to and including it."""

from pathlib import Path
from typing import Any

from support.daemon import Running, running

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ALWAYS = {"include_usage": True, "continuous_usage_stats": True}

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": MESSAGES, "max_tokens": 9}),
    "choices of a chat": (CHAT, {"messages": MESSAGES, "max_tokens": 9, "n": 3, "logprobs": True}),
    "completion": (COMPLETIONS, {"prompt": "Whan that", "max_tokens": 9}),
    "choices of completions": (COMPLETIONS, {"prompt": ["x", "y"], "n": 3, "max_tokens": 9}),
    "echo": (COMPLETIONS, {"prompt": [5, 6, 7], "max_tokens": 9, "echo": True, "logprobs": 1}),
    "nothing but the prompt": (COMPLETIONS, {"prompt": ["x", "y"], "max_tokens": 0, "echo": True}),
}


async def test_a_chunk_counts_the_tokens_sent_with_it_and_before(daemon: Running) -> None:
    for path, body in BODIES.values():
        await check_counts(daemon, path, body)


async def check_counts(daemon: Running, path: str, body: dict[str, Any]) -> None:
    asked = body | {"ignore_eos": True, "return_token_ids": True, "seed": 3}
    events = await daemon.stream(path, **asked, stream_options=ALWAYS)
    num_prompt = events[-1]["usage"]["prompt_tokens"]
    num_sent = 0
    for event in events:
        num_sent += sum(len(choice.get("token_ids", ())) for choice in event["choices"])
        usage = event["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num_prompt, num_sent), event
        assert usage["total_tokens"] == num_prompt + num_sent
    assert events[-1]["choices"] == []
    if path == CHAT:
        roles = [event for event in events if any("role" in c["delta"] for c in event["choices"])]
        assert roles[0]["usage"]["completion_tokens"] == 0


async def test_tokens_that_make_no_chunk_are_counted_with_the_next(tmp_path: Path) -> None:
    """The euro sign is three tokens, of which only the last gives a text."""
    async with running(tmp_path) as daemon:
        asked = {"prompt": list("€".encode()), "max_tokens": 9, "n": 2, "return_token_ids": True}
        events = await daemon.stream(**asked, stream_options=ALWAYS)
    sent, text = 0, ""
    for event in events[:-1]:
        sent += sum(len(choice["token_ids"]) for choice in event["choices"])
        text += "".join(choice["text"] for choice in event["choices"])
        assert event["usage"]["completion_tokens"] == sent
    assert events[-1]["usage"]["completion_tokens"] == sent == len(text.encode()) == 18


async def test_no_chunk_has_usage_unless_it_is_asked_for(daemon: Running) -> None:
    for path, body in BODIES.values():
        for options in (None, {}, {"include_usage": False}, ALWAYS | {"include_usage": False}):
            events = await daemon.stream(path, **body, stream_options=options)
            assert not any("usage" in event for event in events), options
            assert all(event["choices"] for event in events)


async def test_timing_is_in_the_usage(daemon: Running) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 4, "ignore_eos": True, "include_timing": True}
    last_only = await daemon.stream(CHAT, **asked)
    assert [event["usage"] for event in last_only[:-1]] == [None] * (len(last_only) - 1)
    assert last_only[-1]["usage"]["timing"]["ttft_ms"] > 0
    always = await daemon.stream(CHAT, **asked, stream_options=ALWAYS)
    assert next(event["usage"]["completion_tokens"] for event in always) == 0
    assert all("timing" in event["usage"] for event in always)
    refused = asked | {"stream": True, "stream_options": {"include_usage": False}}
    status, answer, _ = await daemon.post(refused, CHAT)
    assert (status, answer["error"]["param"]) == (400, "include_timing")
