"""From a client's options to sampling parameters, within the engine's limits."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from semipd.core.errors import SemipdError
from semipd.core.plan import blocks_for
from semipd.core.sampling import SMALLEST, SamplingParams, check_ids
from semipd.daemon.model.served_model import ServedModel
from semipd.daemon.requests.schema import WHOLE_VOCABULARY, SamplingOptions

_PLAIN_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The engine's, known when it is ready. `pool_tokens`: what the KV pool holds; `block_size`: tokens per
    block."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int
    block_size: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Self:
        """From devices.contract.DeviceInfo as a map. Block 0 of the pool is never handed out."""
        size = info["block_size"]
        return cls(info["vocab_size"], info["max_model_len"], (info["num_blocks"] - 1) * size, size)

    @property
    def max_tokens(self) -> int:
        """Of one request, prompt and output."""
        return min(self.max_model_len, self.pool_tokens)


def sampling_params(
    options: SamplingOptions,
    prompt: list[int],
    default_max_tokens: int | None,
    model: ServedModel,
    limits: EngineLimits,
) -> SamplingParams:
    """`default_max_tokens` applies when the options name none; None: as many as fit.

    Raises SemipdError: `empty_prompt`, `invalid_value`, `context_length_exceeded`, `request_too_large`.
    """
    _check_prompt(prompt, limits)
    given = {name: getattr(options, name) for name in _PLAIN_FIELDS}
    fields: dict[str, Any] = dict(model.sampling_defaults)
    fields |= {name: value for name, value in given.items() if value is not None}
    _normalize(fields, limits.vocab_size)
    stop_ids = dict.fromkeys(options.stop_token_ids or ())
    if not options.ignore_eos:
        stop_ids |= dict.fromkeys(model.eos_token_ids)
    # the engine computes a prompt only to predict: the token is dropped later
    asked = 1 if options.prompt_only else options.token_limit
    every_token = options.num_prompt_logprobs == WHOLE_VOCABULARY
    params = SamplingParams(
        max_tokens=_max_tokens(asked, default_max_tokens, len(prompt), limits),
        seed=secrets.randbits(64) if options.seed is None else options.seed % 2**64,
        logit_bias=tuple((int(token), bias) for token, bias in (options.logit_bias or {}).items()),
        allowed_token_ids=tuple(dict.fromkeys(options.allowed_token_ids or ())),
        stop_token_ids=tuple(stop_ids),
        logprobs=options.num_logprobs,
        prompt_logprobs=limits.vocab_size if every_token else options.num_prompt_logprobs,
        **fields,
    )
    params.validate(limits.vocab_size)
    return params


def _normalize(fields: dict[str, Any], vocab_size: int) -> None:
    """Values that mean "off", and those that would be zero to the sampler although they are not."""
    top_k = fields.get("top_k", 0)
    if top_k == -1 or top_k >= vocab_size:  # -1 is how vLLM and its clients spell "off"
        fields["top_k"] = 0
    for name in ("temperature", "top_p"):
        if 0 < fields.get(name, 1) < SMALLEST:
            fields[name] = SMALLEST


def _check_prompt(prompt: list[int], limits: EngineLimits) -> None:
    if not prompt:
        message = "The prompt holds no tokens; at least one is needed."
        raise SemipdError("empty_prompt", message, param="prompt")
    check_ids(prompt, limits.vocab_size, "prompt")
    if len(prompt) >= limits.max_model_len:
        raise SemipdError(
            "context_length_exceeded",
            f"The prompt has {len(prompt)} tokens; with at least one to generate, "
            f"the context of {limits.max_model_len} tokens is exceeded.",
            "Shorten the prompt.",
            param="prompt",
        )
    if len(prompt) >= limits.pool_tokens:
        raise _too_large(len(prompt) + 1, limits, "Shorten the prompt, or raise kv.bytes.", "prompt")


def _max_tokens(asked: int | None, default: int | None, num_prompt_tokens: int, limits: EngineLimits) -> int:
    if asked is None:
        room = limits.max_tokens - num_prompt_tokens
        return room if default is None else min(default, room)
    room = limits.max_model_len - num_prompt_tokens
    if asked > room:
        raise SemipdError(
            "context_length_exceeded",
            f"{num_prompt_tokens} prompt tokens and max_tokens={asked} exceed "
            f"the context of {limits.max_model_len} tokens.",
            f"Lower max_tokens to {room}, or shorten the prompt.",
            param="max_tokens",
        )
    if num_prompt_tokens + asked > limits.pool_tokens:
        hint = f"Lower max_tokens to {limits.pool_tokens - num_prompt_tokens}, or raise kv.bytes."
        raise _too_large(num_prompt_tokens + asked, limits, hint, "max_tokens")
    return asked


def _too_large(num_tokens: int, limits: EngineLimits, hint: str, param: str) -> SemipdError:
    size = limits.block_size
    return SemipdError(
        "request_too_large",
        f"The request may reach {num_tokens} tokens, which need {blocks_for(num_tokens, size)} KV blocks of "
        f"{size}; the whole pool has {limits.pool_tokens // size}.",
        hint,
        param=param,
    )
