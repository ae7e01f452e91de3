"""Fields of OpenAI, vLLM and SGLang that we know without serving them: what they may hold, and which refuse
the request. With the models of bodies and harmless_fields they are all fields those three have."""

from collections.abc import Mapping

from semipd.core.brief import brief
from semipd.core.errors import SemipdError

Allowed = tuple[object, ...] | None
"""Values besides null that ask for nothing; None: whatever it holds, the answer is the same."""

_CONSTRAINTS: dict[str, Allowed] = {
    "bad_words": ([],),
    "custom_logit_processor": (),
    "custom_params": ({},),
    "ebnf": (),
    "grammar": (),
    "guided_choice": (),
    "guided_decoding_backend": None,
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": None,
    "json_schema": (),
    "logits_processors": ([],),
    "no_stop_trim": (False,),
    "regex": (),
    "repetition_detection": (),
    "response_format": ({"type": "text"},),
    "stop_regex": ([], ""),
    "structural_tag": (),
    "structured_outputs": (),
    "watermarking": (False,),
}
"""What may be generated, and until when."""

_SEARCH: dict[str, Allowed] = {
    "length_penalty": (1,),
    "thinking_token_budget": (-1,),
    "use_beam_search": (False,),
}

_INPUT: dict[str, Allowed] = {
    "images_config": ({},),
    "lora_path": (),
    "media_io_kwargs": None,
    "mm_processor_kwargs": None,
    "prompt_embeds": ([],),
    "session_params": ({},),
}
"""Beside prompt and messages."""

_ANSWER: dict[str, Allowed] = {
    "logprob_token_ids": (),
    "moderation": (),
    "return_cached_tokens_details": None,  # usage has prompt_tokens_details in any case
    "return_hidden_states": (False,),
    "return_mm_kwargs": None,
    "return_prompt_text": (False,),
    "return_routed_experts": (False,),
    "return_token_offsets": None,
    "routed_experts_prompt_start": None,
    "routed_experts_start_len": None,
    "spaces_between_special_tokens": (True, False),
    "stream_interval": None,
}

_PLACEMENT: dict[str, Allowed] = {
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "custom_labels": None,
    "data_parallel_rank": (0,),
    "disagg_prefill_dp_rank": (0,),
    "ec_transfer_params": ({},),
    "extra_key": (),
    "kv_transfer_params": ({},),
    "ngram_corpus_id": (),
    "rid": None,
    "routed_dp_rank": (0,),
    "vllm_xargs": ({},),
}
"""Where and beside whom it is computed."""

_EVERYWHERE = _CONSTRAINTS | _SEARCH | _INPUT | _ANSWER | _PLACEMENT

COMPLETION_FIELDS: dict[str, Allowed] = _EVERYWHERE | {"suffix": ("",)}

CHAT_FIELDS: dict[str, Allowed] = _EVERYWHERE | {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": None,  # there is no reasoning beside the content
    "input_ids": (),
    "max_dynamic_patch": None,
    "min_dynamic_patch": None,
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_options": None,
    "reasoning": ({},),
    "return_meta_info": (False,),
    "return_prompt_token_ids": (False,),
    "separate_reasoning": None,
    "stream_reasoning": None,
    "task": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_audio_in_video": None,
    "web_search_options": (),
}

TOKENIZE_FIELDS: dict[str, Allowed] = CHAT_FIELDS | {"truncate_prompt_tokens": (), "truncation_side": None}

STREAM_FIELDS: dict[str, Allowed] = {"include_obfuscation": (False,)}

_CHOICE_OF = {"tools": "tool_choice", "functions": "function_call"}
"""A list of tools asks for nothing when this field says that none is to be called."""

_NEXT_STEP = {
    "extra_key": "Use cache_salt.",
    "no_stop_trim": "Use include_stop_str_in_output.",
    "reasoning": "Use reasoning_effort, or chat_template_kwargs for what this model's chat template offers.",
    "return_prompt_token_ids": "Use return_token_ids.",
    "stop_regex": "Use stop, which takes strings.",
    "thinking_token_budget": "Use max_tokens.",
    "tools": 'Leave tools out, or send tool_choice "none" with them.',
    "truncate_prompt_tokens": "Shorten the prompt before it is sent.",
}


def refuse_unsupported(fields: Mapping[str, object], known: Mapping[str, Allowed]) -> list[str]:
    """Names in `fields` that mean nothing to us. Raises SemipdError(`unsupported_value`) on a field we
    know, cannot honour, and would have to."""
    for name, value in fields.items():
        if name in known and value is not None and not _asks_for_nothing(name, value, known[name], fields):
            raise SemipdError(
                "unsupported_value",
                f"{name}={brief(value)} is not supported.",
                _NEXT_STEP.get(name, f"Leave {name} out."),
                param=name,
            )
    return [name for name in fields if name not in known]


def _asks_for_nothing(name: str, value: object, allowed: Allowed, fields: Mapping[str, object]) -> bool:
    if isinstance(value, dict):
        value = {key: member for key, member in value.items() if member is not None}
    if allowed is None or value in allowed:
        return True
    return name in _CHOICE_OF and isinstance(value, list) and fields.get(_CHOICE_OF[name]) == "none"
