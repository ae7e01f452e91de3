"""Bodies as real clients send them, explicit nulls and unknown fields included."""

from typing import Any

from support.daemon import Running

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
PLAIN = [{"role": "user", "content": "hi"}]

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "langchain OpenAI": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": ["hi"],
            "frequency_penalty": 0,
            "logit_bias": None,
            "logprobs": None,
            "max_tokens": 8,
            "n": 1,
            "presence_penalty": 0,
            "seed": None,
            "temperature": 0.7,
            "top_p": 1,
        },
    ),
    "langchain OpenAI, streaming": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": "hi",
            "stream": True,
            "frequency_penalty": 0,
            "logprobs": None,
            "max_tokens": 8,
            "n": 1,
            "presence_penalty": 0,
            "seed": None,
            "temperature": 0.7,
            "top_p": 1,
        },
    ),
    "langchain ChatOpenAI": (
        CHAT,
        {
            "messages": PLAIN,
            "model": "bytes",
            "max_completion_tokens": 8,
            "stream": False,
            "n": 2,
            "stop": ["</s>"],
            "seed": 3,
            "logprobs": True,
        },
    ),
    "vllm bench openai": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": "hi",
            "repetition_penalty": 1.0,
            "max_tokens": 8,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        },
    ),
    "vllm bench openai-chat": (
        CHAT,
        {
            "model": "bytes",
            "messages": PARTS,
            "max_completion_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        },
    ),
    "sglang-oai": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": "hi",
            "temperature": 0.0,
            "best_of": 1,
            "max_tokens": 8,
            "stream": True,
            "ignore_eos": True,
        },
    ),
    "sglang-oai-chat": (
        CHAT,
        {
            "model": "bytes",
            "messages": PLAIN,
            "temperature": 0.0,
            "max_completion_tokens": 8,
            "stream": True,
            "ignore_eos": True,
            "return_cached_tokens_details": True,
            "made_up_by_a_client": 1,
        },
    ),
    "guidellm": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": "hi",
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": 8,
            "ignore_eos": True,
            "stop": None,
        },
    ),
    "aiperf": (
        CHAT,
        {
            "model": "bytes",
            "messages": PLAIN,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 8,
            "min_tokens": 8,
        },
    ),
    "genai-bench": (
        CHAT,
        {
            "model": "bytes",
            "messages": PARTS,
            "max_tokens": 8,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "promptfoo": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": "hi",
            "best_of": 1,
            "stop": ["<|im_end|>", "<|endoftext|>"],
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "max_tokens": 8,
        },
    ),
    "lm-eval loglikelihood": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": [[5, 6, 7, 8], [9, 10]],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
    ),
    "lm-eval generate": (
        COMPLETIONS,
        {
            "model": "bytes",
            "prompt": [[5, 6, 7, 8]],
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["\n\n"],
            "seed": 1234,
        },
    ),
}


async def test_real_bodies_are_served(daemon: Running) -> None:
    for client, (path, body) in BODIES.items():
        if not body.get("stream"):
            answer = await daemon.complete(path, **body)
            count = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
            assert len(answer["choices"]) == count, client
            continue
        events = await daemon.stream(path, **body)
        ends = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
        assert len(ends) == 1, client
        if (body.get("stream_options") or {}).get("include_usage"):
            assert events[-1]["choices"] == [], client
            assert events[-1]["usage"]["completion_tokens"] <= 8, client
        if body.get("ignore_eos"):
            assert ends == ["length"], client
    assert (await daemon.services.status())["ignored_fields"] == {"made_up_by_a_client": 1}


async def test_every_optional_field_may_be_null(daemon: Running) -> None:
    async with daemon.http.get(f"{daemon.url}/openapi.json") as response:
        schemas = (await response.json())["components"]["schemas"]
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("CompletionRequest", COMPLETIONS, {"prompt": "hi"}),
        ("ChatCompletionRequest", CHAT, {"messages": PLAIN}),
        ("TokenizeRequest", "/tokenize", {"prompt": "hi"}),
        ("DetokenizeRequest", "/detokenize", {"tokens": [5]}),
    ]
    for schema, path, required in cases:
        nulls = dict.fromkeys(schemas[schema]["properties"]) | required
        if path == CHAT:
            nulls["max_tokens"] = 4
        assert await daemon.complete(path, **nulls)
    status, answer, _ = await daemon.post(
        {"prompt": "hi"} | dict.fromkeys(("suffix", "guided_json", "response_format", "allowed_token_ids"))
    )
    assert status == 200, answer


async def test_lm_eval_finds_its_entries(daemon: Running) -> None:
    _, body = BODIES["lm-eval loglikelihood"]
    answer = await daemon.complete(**body)
    for choice, prompt in zip(answer["choices"], body["prompt"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(prompt) + 1
        continuation = logprobs["token_logprobs"][1:-1]
        assert continuation == [-0.5] * (len(prompt) - 1)
        for token, top in zip(logprobs["tokens"][1:-1], logprobs["top_logprobs"][1:-1], strict=True):
            assert max(top, key=lambda name: top[name]) == token
