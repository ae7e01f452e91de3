"""Generation for HTTP and socket alike: validate, tokenize, submit, and give text as it becomes certain."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from semipd.core.errors import SemipdError
from semipd.core.events import FinishReason
from semipd.core.sampling import SamplingParams
from semipd.daemon.requests import LiveRequest, RequestTable
from semipd.daemon.schema import SamplingOptions
from semipd.daemon.text import StreamDecoder, TextStream

INLINE_ENCODE_CHARS = 4096
"""Longer texts are tokenized in a thread: this many take about a millisecond."""


class TextCodec(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def stream_decoder(self) -> StreamDecoder: ...


class MessageTemplate(Protocol):
    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str: ...


class ServedModel(Protocol):
    """What generation needs to know of the checkpoint; daemon.model_files provides it."""

    @property
    def tokenizer(self) -> TextCodec: ...

    @property
    def chat_template(self) -> MessageTemplate | None: ...

    @property
    def eos_token_ids(self) -> Sequence[int]: ...

    @property
    def sampling_defaults(self) -> Mapping[str, float | int]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's, known when it is ready."""

    vocab_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """New text and the tokens behind it. While text may still become a stop string, it comes with a
    later piece than its tokens. Only the last piece has a finish reason."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None


class Generation:
    """One admitted request."""

    def __init__(self, live: LiveRequest, text: TextStream, table: RequestTable) -> None:
        self._live = live
        self._text = text
        self._table = table

    @property
    def usage(self) -> Usage:
        """Counts the tokens seen so far, a stop token included."""
        prompt = len(self._live.request.prompt)
        return Usage(prompt, self._text.num_tokens, self._live.cached_tokens)

    def cancel(self) -> None:
        """End it; the consumer's last piece says so. Does not wait."""
        self._table.cancel(self._live)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Ends after the piece with a finish reason. Raises SemipdError if the request fails."""
        live, text = self._live, self._text
        while True:
            num_seen = text.num_tokens
            await live.changed(num_seen)
            fresh = live.tokens[num_seen:]
            released = text.push(fresh)
            if text.matched:
                self._table.cancel(live, "stop")
                yield Piece(released, fresh[: text.num_tokens - num_seen], "stop")
                return
            if live.is_over:
                yield self._last(released, fresh)
                return
            yield Piece(released, fresh)

    def _last(self, released: str, fresh: list[int]) -> Piece:
        if self._live.error is not None:
            raise self._live.error
        reason = self._live.finish_reason
        rest = self._text.finish(at_stop_token=reason == "stop")
        return Piece(released + rest, fresh, "stop" if self._text.matched else reason)


class GenerationService:
    """Opens generations on one engine with one model."""

    def __init__(self, model: ServedModel, table: RequestTable) -> None:
        self.table = table
        self._model = model
        self._limits: Limits | None = None

    def engine_is_ready(self, limits: Limits) -> None:
        self._limits = limits

    @asynccontextmanager
    async def open(
        self,
        request_id: str,
        prompt: str | list[int],
        options: SamplingOptions,
        default_max_tokens: int | None = None,
    ) -> AsyncIterator[Generation]:
        """Admit a request; leaving the context cancels what is still running.

        `default_max_tokens` applies when the options name none; None: as many as fit. Raises
        SemipdError: `engine_not_ready`, `empty_prompt`, `invalid_value`, `context_length_exceeded`, and
        what RequestTable.admit raises.
        """
        if self._limits is None:
            raise SemipdError(
                "engine_not_ready", "The engine is still starting.", "Send the request again later."
            )
        if isinstance(prompt, str):
            prompt = await self._encode(prompt, options.add_special_tokens is not False)
        _check_prompt(prompt, self._limits)
        params = self._params(options, len(prompt), default_max_tokens, self._limits)
        live = self.table.admit(request_id, prompt, params, namespace=options.cache_salt or "")
        try:
            # The engine gets no stop strings: they are found here.
            decoder = self._model.tokenizer.stream_decoder()
            text = TextStream(decoder, options.stop or (), params.stop_token_ids, params.min_tokens)
            yield Generation(live, text, self.table)
        finally:
            self.table.release(live)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, special tokens included. Raises SemipdError."""
        template = self._model.chat_template
        if template is None:
            raise SemipdError(
                "no_chat_template",
                "The model has no chat template.",
                "Send a prompt instead of messages.",
                param="messages",
            )
        return template.render(messages)

    async def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        encode = self._model.tokenizer.encode
        if len(text) <= INLINE_ENCODE_CHARS:
            return encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens)

    def _params(
        self, options: SamplingOptions, num_prompt_tokens: int, default_max_tokens: int | None, limits: Limits
    ) -> SamplingParams:
        given = {name: getattr(options, name) for name in _PLAIN_FIELDS}
        fields: dict[str, Any] = dict(self._model.sampling_defaults)
        fields |= {name: value for name, value in given.items() if value is not None}
        if fields.get("top_k") == -1:  # how vLLM and its clients spell "off"
            fields["top_k"] = 0
        stop_ids = dict.fromkeys(options.stop_token_ids or ())
        if not options.ignore_eos:
            stop_ids |= dict.fromkeys(self._model.eos_token_ids)
        params = SamplingParams(
            max_tokens=_max_tokens(options.max_tokens, default_max_tokens, num_prompt_tokens, limits),
            seed=secrets.randbits(64) if options.seed is None else options.seed % 2**64,
            logit_bias=_logit_bias(options.logit_bias),
            stop_token_ids=tuple(stop_ids),
            **fields,
        )
        params.validate(limits.vocab_size)
        return params


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


def _check_prompt(prompt: list[int], limits: Limits) -> None:
    if not prompt:
        message = "The prompt holds no tokens; at least one is needed."
        raise SemipdError("empty_prompt", message, param="prompt")
    if max(prompt) >= limits.vocab_size or min(prompt) < 0:
        wrong = next(token for token in prompt if not 0 <= token < limits.vocab_size)
        raise SemipdError(
            "invalid_value",
            f"prompt holds the token id {wrong}; the vocabulary has {limits.vocab_size} tokens.",
            param="prompt",
        )
    if len(prompt) >= limits.max_model_len:
        raise SemipdError(
            "context_length_exceeded",
            f"The prompt has {len(prompt)} tokens; with at least one to generate, "
            f"the context of {limits.max_model_len} tokens is exceeded.",
            "Shorten the prompt.",
            param="prompt",
        )


def _max_tokens(asked: int | None, default: int | None, num_prompt_tokens: int, limits: Limits) -> int:
    room = limits.max_model_len - num_prompt_tokens
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise SemipdError(
            "context_length_exceeded",
            f"{num_prompt_tokens} prompt tokens and max_tokens={asked} exceed "
            f"the context of {limits.max_model_len} tokens.",
            f"Lower max_tokens to {room}, or shorten the prompt.",
            param="max_tokens",
        )
    return asked


def _logit_bias(bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), value) for token, value in (bias or {}).items())
    except ValueError as error:
        raise SemipdError(
            "invalid_value", "logit_bias needs token ids as keys.", param="logit_bias"
        ) from error
