"""Fields of a body that we know without serving them: what they may hold, and which refuse the request."""

from collections.abc import Mapping

from semipd.core.errors import SemipdError

Allowed = tuple[object, ...] | None
"""Values besides null that ask for nothing; None: whatever it holds, the answer is the same."""

_EVERYWHERE: dict[str, Allowed] = {
    "bad_words": ([],),
    "ebnf": (),
    "grammar": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "moderation": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True, False),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}

COMPLETION_FIELDS: dict[str, Allowed] = _EVERYWHERE | {"suffix": ("",)}

CHAT_FIELDS: dict[str, Allowed] = _EVERYWHERE | {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": None,
    "modalities": (["text"],),
    "parallel_tool_calls": None,
    "prediction": (),
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": None,
    "reasoning_effort": (),
    "safety_identifier": None,
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

STREAM_FIELDS: dict[str, Allowed] = {"include_obfuscation": (False,)}

_NEXT_STEP = {
    "reasoning_effort": "Use chat_template_kwargs for what this model's chat template offers.",
    "truncate_prompt_tokens": "Shorten the prompt before it is sent.",
}


def refuse_unsupported(fields: Mapping[str, object], known: Mapping[str, Allowed]) -> list[str]:
    """Names in `fields` that mean nothing to us. Raises SemipdError(`unsupported_value`) on a field we
    know, cannot honour, and would have to."""
    for name, value in fields.items():
        if name not in known or value is None:
            continue
        allowed = known[name]
        if allowed is not None and value not in allowed:
            raise SemipdError(
                "unsupported_value",
                f"{name}={value!r:.80} is not supported.",
                _NEXT_STEP.get(name, f"Leave {name} out."),
                param=name,
            )
    return [name for name in fields if name not in known]
