"""Every field of OpenAI's, vLLM's and SGLang's requests is served, harmless, or refused when it asks for
something. The lists are theirs, of late 2026."""

import json
import re
from pathlib import Path
from typing import Any

from support.daemon import Running, running
from support.fake_model import fake_model, fake_settings

from semipd.daemon.openai.bodies import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    HttpBody,
    StreamOptions,
    TokenizeRequest,
)
from semipd.daemon.openai.unserved_fields import STREAM_FIELDS

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
OPENAI = Path(__file__).parents[1] / "data" / "openai" / "openai_min_openapi.json"

BOTH = """
model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options
temperature top_p user use_beam_search top_k min_p repetition_penalty watermarking length_penalty
stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids
allowed_token_ids bad_words echo add_special_tokens response_format structured_outputs priority request_id
session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
thinking_token_budget stream_interval guided_json guided_regex guided_choice guided_grammar
guided_decoding_backend guided_whitespace_pattern logits_processors best_of return_hidden_states
return_routed_experts routed_experts_start_len return_cached_tokens_details json_schema regex ebnf
stop_regex no_stop_trim lora_path session_params custom_params custom_logit_processor images_config
bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank data_parallel_rank rid
extra_key ngram_corpus_id custom_labels
"""
OF_COMPLETIONS = "prompt suffix prompt_embeds"
OF_CHAT = """
messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort include_reasoning
parallel_tool_calls add_generation_prompt continue_final_message documents chat_template
chat_template_kwargs media_io_kwargs mm_processor_kwargs return_prompt_text return_prompt_token_ids
return_meta_info task separate_reasoning stream_reasoning max_dynamic_patch min_dynamic_patch
use_audio_in_video input_ids reasoning
"""

PLAIN = {"model", "stream", "presence_penalty", "frequency_penalty", "repetition_penalty"}
"""The documentation speaks of them in other words."""

EFFECTIVE: dict[str, Any] = {
    "bad_words": ["x"],
    "bootstrap_host": "h",
    "bootstrap_port": 1,
    "bootstrap_room": 7,
    "custom_logit_processor": "code",
    "custom_params": {"a": 1},
    "data_parallel_rank": 1,
    "disagg_prefill_dp_rank": 1,
    "ebnf": "root ::= 'a'",
    "ec_transfer_params": {"a": 1},
    "extra_key": "tenant",
    "guided_choice": ["a", "b"],
    "guided_grammar": "g",
    "guided_json": {},
    "guided_regex": "a+",
    "images_config": {"a": 1},
    "json_schema": "{}",
    "kv_transfer_params": {"do_remote_decode": True},
    "length_penalty": 2,
    "logits_processors": ["x"],
    "logprob_token_ids": [1],
    "lora_path": "adapter",
    "ngram_corpus_id": "corpus",
    "no_stop_trim": True,
    "regex": "a+",
    "repetition_detection": {"min_count": 2},
    "response_format": {"type": "json_object"},
    "return_hidden_states": True,
    "return_routed_experts": True,
    "routed_dp_rank": 1,
    "session_params": {"id": "s"},
    "stop_regex": "a+",
    "structured_outputs": {"regex": "a"},
    "thinking_token_budget": 5,
    "use_beam_search": True,
    "vllm_xargs": {"a": 1},
    "watermarking": True,
}
EFFECTIVE_CHAT: dict[str, Any] = {
    "audio": {"voice": "a"},
    "chat_template": "{{ messages }}",
    "documents": [{"text": "t"}],
    "echo": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "input_ids": [1],
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning": {"effort": "low"},
    "return_meta_info": True,
    "return_prompt_text": True,
    "return_prompt_token_ids": True,
    "task": "query",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "web_search_options": {},
}
HARMLESS: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
    "verbosity": "low",
    "reasoning_effort": "high",
    "request_id": "r",
    "session_id": "s",
    "rid": "r",
    "custom_labels": {"a": "b"},
    "stream_interval": 4,
    "return_token_offsets": True,
    "response_format": {"type": "text", "json_schema": None},
    "stop_regex": [],
    "kv_transfer_params": {},
    "stop": [],
    "n": None,
    "stream_options": None,
    "logit_bias": {},
    "stop_token_ids": [],
}
HARMLESS_CHAT: dict[str, Any] = {
    "tool_choice": "none",
    "include_reasoning": False,
    "separate_reasoning": True,
    "modalities": ["text"],
    "prompt_cache_options": {"ttl": "1h"},
    "reasoning": {},
}
MALFORMED: dict[str, list[Any]] = {
    "user": [5, "u" * 1025],
    "metadata": ["a", {"a": 1}, {"k" * 65: "v"}, {"k": "v" * 513}, {str(idx): "" for idx in range(17)}],
    "store": ["true", 1],
    "service_tier": ["gold", 1],
    "verbosity": ["loud", 3],
    "reasoning_effort": ["deep", True, 0.5],
    "parallel_tool_calls": [1],
    "safety_identifier": [{}],
    "truncation_side": ["middle"],
}


def known(kind: type[HttpBody]) -> set[str]:
    return set(kind.model_fields) | set(kind.known_fields)


def openai_fields(name: str) -> set[str]:
    schemas = json.loads(OPENAI.read_text())["components"]["schemas"]

    def of(schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return of(schemas[schema["$ref"].rpartition("/")[2]])
        return set(schema.get("properties", {})).union(*map(of, schema.get("allOf", [])))

    return of(schemas[name])


def test_no_field_is_unknown() -> None:
    assert not openai_fields("CreateChatCompletionRequest") - known(ChatCompletionRequest)
    assert not openai_fields("CreateCompletionRequest") - known(CompletionRequest)
    assert not {*BOTH.split(), *OF_COMPLETIONS.split()} - known(CompletionRequest)
    assert not {*BOTH.split(), *OF_CHAT.split()} - known(ChatCompletionRequest)
    assert {"include_usage", "include_obfuscation"} <= set(StreamOptions.model_fields) | set(STREAM_FIELDS)


def test_a_field_is_either_served_or_in_the_table() -> None:
    for kind in (ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        assert not set(kind.model_fields) & set(kind.known_fields)


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    named = set(re.findall(r"`([a-z_]+)(?::[^`]*)?`", text))
    for kind in (ChatCompletionRequest, CompletionRequest):
        assert not known(kind) - named - PLAIN


async def test_what_asks_for_something_is_refused_by_name(daemon: Running) -> None:
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": "a"}, EFFECTIVE | {"suffix": "x", "prompt_embeds": "AAAA"}),
        (CHAT, {"messages": MESSAGES}, EFFECTIVE | EFFECTIVE_CHAT),
    ]
    for path, body, fields in asked:
        for name, value in fields.items():
            status, answer, _ = await daemon.post(body | {name: value}, path)
            error = answer.get("error", {})
            assert (status, error.get("code"), error.get("param")) == (400, "unsupported_value", name), answer
            assert name in error["message"]
    assert daemon.services.table.totals["admitted"] == 0


async def test_harmless_fields_change_nothing(daemon: Running) -> None:
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": "a"}, HARMLESS | {"suffix": ""}),
        (CHAT, {"messages": MESSAGES}, HARMLESS | HARMLESS_CHAT),
    ]
    for path, body, fields in asked:
        common = body | {"max_tokens": 4, "seed": 3}
        [plain] = (await daemon.complete(path, **common))["choices"]
        for name, value in fields.items():
            [choice] = (await daemon.complete(path, **common | {name: value}))["choices"]
            assert choice == plain, name
    assert not daemon.services.ignored_fields


async def test_a_malformed_harmless_field_is_refused(daemon: Running) -> None:
    for name, values in MALFORMED.items():
        for value in values:
            status, answer, _ = await daemon.post({"messages": MESSAGES, name: value}, CHAT)
            assert (status, answer["error"]["param"]) == (400, name), (name, value, answer)


async def test_tools_that_may_not_be_called_ask_for_nothing(daemon: Running) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": MESSAGES, "max_tokens": 2, "seed": 1}
    plain = await daemon.chat(**body)
    for unused in (
        {"tools": tools, "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
    ):
        answer = await daemon.chat(**body, **unused)
        assert answer["choices"] == plain["choices"]
        assert answer["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    for tool_choice in (None, "auto", "required", {"type": "function", "function": {"name": "f"}}):
        status, _, _ = await daemon.post(body | {"tools": tools, "tool_choice": tool_choice}, CHAT)
        assert status == 400
    status, _, _ = await daemon.post(body | {"tools": "f", "tool_choice": "none"}, CHAT)
    assert status == 400


EFFORT = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    "{% if reasoning_effort %} effort {{ reasoning_effort }}{% endif %}"
    "{% if verbosity %} verbosity {{ verbosity }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %} no thoughts{% endif %}"
)


async def test_a_template_that_names_the_effort_is_told(tmp_path: Path) -> None:
    model = fake_model(tmp_path, chat_template=EFFORT)

    async def prompt(daemon: Running, **more: Any) -> str:
        body = {"messages": MESSAGES} | more
        tokens = (await daemon.complete("/tokenize", **body))["tokens"]
        answer = await daemon.chat(**body, max_tokens=1, return_token_ids=True)
        assert answer["prompt_token_ids"] == tokens
        return model.tokenizer.decode(tokens)

    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        assert await prompt(daemon) == "hi"
        assert await prompt(daemon, reasoning_effort="low") == "hi effort low"
        assert await prompt(daemon, reasoning_effort="none") == "hi effort none no thoughts"
        assert await prompt(daemon, verbosity="high") == "hi verbosity high"
        kwargs = {"reasoning_effort": "max", "enable_thinking": True}
        asked = {"reasoning_effort": "none", "chat_template_kwargs": kwargs}
        assert await prompt(daemon, **asked) == "hi effort max"
