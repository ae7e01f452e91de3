"""Prompts that are shortened because their client asks for it (vLLM's truncate_prompt_tokens)."""

from dataclasses import replace

from semipd.core.errors import SemipdError
from semipd.daemon.prompts.prompt import Prompt
from semipd.daemon.requests.options import EngineLimits
from semipd.daemon.requests.schema import FILL_CONTEXT, SamplingOptions


def truncated(
    prompt: Prompt, options: SamplingOptions, default_max_tokens: int | None, limits: EngineLimits
) -> Prompt:
    """Without a text if tokens were taken away: what is left need not be a part of it. Raises
    SemipdError(`invalid_value`)."""
    if options.truncation is None:
        return prompt
    num_tokens, side = options.truncation
    if num_tokens == FILL_CONTEXT:
        num_tokens = max(limits.max_tokens - _num_reserved(options, default_max_tokens), 1)
    _check(num_tokens, limits)
    if len(prompt.token_ids) <= num_tokens:
        return prompt
    kept = prompt.token_ids[-num_tokens:] if side == "left" else prompt.token_ids[:num_tokens]
    return replace(prompt, token_ids=kept, text=None)


def _num_reserved(options: SamplingOptions, default_max_tokens: int | None) -> int:
    """For the output: what is asked for, else the endpoint's default."""
    asked = default_max_tokens if options.token_limit is None else options.token_limit
    return max(asked or 1, 1)


def _check(num_tokens: int, limits: EngineLimits) -> None:
    if not 1 <= num_tokens <= limits.max_model_len:
        raise SemipdError(
            "invalid_value",
            f"truncate_prompt_tokens is -1 (as many as leave room for max_tokens) or 1 to "
            f"{limits.max_model_len}, the model's context; got {num_tokens}.",
            param="truncate_prompt_tokens",
        )
