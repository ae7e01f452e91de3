"""From a client's options to sampling parameters, within the engine's limits."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from semipd.core.errors import SemipdError
from semipd.core.plan import BLOCK_SIZE, blocks_for
from semipd.core.sampling import SamplingParams
from semipd.daemon.schema import WHOLE_VOCABULARY, SamplingOptions
from semipd.daemon.served_model import ServedModel

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
class Limits:
    """The engine's, known when it is ready. `pool_tokens`: what the KV pool holds."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Self:
        """From devices.contract.DeviceInfo as a map. Block 0 of the pool is never handed out."""
        return cls(info["vocab_size"], info["max_model_len"], (info["num_blocks"] - 1) * BLOCK_SIZE)

    @property
    def max_tokens(self) -> int:
        """Of one request, prompt and output."""
        return min(self.max_model_len, self.pool_tokens)


def sampling_params(
    options: SamplingOptions,
    prompt: list[int],
    default_max_tokens: int | None,
    model: ServedModel,
    limits: Limits,
) -> SamplingParams:
    """`default_max_tokens` applies when the options name none; None: as many as fit.

    Raises SemipdError: `empty_prompt`, `invalid_value`, `context_length_exceeded`, `request_too_large`.
    """
    _check_prompt(prompt, limits)
    given = {name: getattr(options, name) for name in _PLAIN_FIELDS}
    fields: dict[str, Any] = dict(model.sampling_defaults)
    fields |= {name: value for name, value in given.items() if value is not None}
    if fields.get("top_k") == -1:  # how vLLM and its clients spell "off"
        fields["top_k"] = 0
    stop_ids = dict.fromkeys(options.stop_token_ids or ())
    if not options.ignore_eos:
        stop_ids |= dict.fromkeys(model.eos_token_ids)
    # the engine computes a prompt only to predict: the token is dropped later
    asked = 1 if options.prompt_only else options.token_limit
    every_token = options.num_prompt_logprobs == WHOLE_VOCABULARY
    params = SamplingParams(
        max_tokens=_max_tokens(asked, default_max_tokens, len(prompt), limits),
        seed=secrets.randbits(64) if options.seed is None else options.seed % 2**64,
        logit_bias=_logit_bias(options.logit_bias),
        stop_token_ids=tuple(stop_ids),
        logprobs=options.num_logprobs,
        prompt_logprobs=limits.vocab_size if every_token else options.num_prompt_logprobs,
        **fields,
    )
    params.validate(limits.vocab_size)
    return params


def _check_prompt(prompt: list[int], limits: Limits) -> None:
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


def check_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises SemipdError(`invalid_value`) when one is not in the vocabulary."""
    if token_ids and (max(token_ids) >= vocab_size or min(token_ids) < 0):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise SemipdError(
            "invalid_value",
            f"{param} holds the token id {wrong}; the vocabulary has {vocab_size} tokens.",
            param=param,
        )


def _max_tokens(asked: int | None, default: int | None, num_prompt_tokens: int, limits: Limits) -> int:
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


def _too_large(num_tokens: int, limits: Limits, hint: str, param: str) -> SemipdError:
    return SemipdError(
        "request_too_large",
        f"The request may reach {num_tokens} tokens, which need {blocks_for(num_tokens)} KV blocks of "
        f"{BLOCK_SIZE}; the whole pool has {limits.pool_tokens // BLOCK_SIZE}.",
        hint,
        param=param,
    )


def _logit_bias(bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), value) for token, value in (bias or {}).items())
    except ValueError as error:
        raise SemipdError(
            "invalid_value", "logit_bias needs token ids as keys.", param="logit_bias"
        ) from error
