"""From a client's texts, token ids or messages to prompts. What takes long leaves the event loop."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import RenderingState
from semipd.daemon.host.heap import HeapTrimmer
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.model.served_model import MessageTemplate, ServedModel
from semipd.daemon.model.text_bounds import CERTAINTY, PREFIX_CHARS_PER_TOKEN, TextBound
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.daemon.prompts.conversation import Conversation
from semipd.daemon.prompts.rendering import DirectRenderer, Renderer, RenderPool, rendering_to_wire

INLINE_ENCODE_CHARS = 4096
"""Longer texts are tokenized in a thread: this many take about a millisecond."""

INLINE_TEXTS = 64
"""More texts of one request are tokenized in a thread."""

SLOW_ENCODE_S = 0.01
"""CPU time of one text on the event loop that shows a slow tokenizer: all later texts go to threads."""

ENCODING_THREADS = 2
"""So many requests' texts are tokenized at once; the others wait."""

MAX_PREPARING_CHARS = 64 * 2**20
"""Of all texts that are being tokenized or wait for it."""

WORKING_BYTES = 400
"""That tokenizing takes for a character, at most."""

MAX_REQUEST_TOKENS = 2**20
"""Of all prompts of one request; one prompt may have as many as the context holds."""

MAX_TOKENIZED = 131072
"""Tokens of a text that need not fit into the context, or as many as the context holds if that is more."""

log = logging.getLogger(__name__)

_RESERVED_NAMES = frozenset({"messages", "add_generation_prompt"})
_GROWTH = 8

DEFAULT_BOUND = TextBound(MAX_REQUEST_TOKENS, "the limit of a request", code="request_too_large")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text`: what the token ids were made of; None when the client sent ids. `opens_text`: what is
    generated is a text of its own, an answer, and not the prompt's continuation."""

    token_ids: list[int]
    text: str | None = None
    opens_text: bool = False


class Prompts:
    """To be closed: the chat template may have processes."""

    def __init__(self, model: ServedModel, limits: LimitsConfig) -> None:
        self._model = model
        self._renderer = None if model.chat_template is None else _renderer(model.chat_template, limits)
        self.heap = HeapTrimmer()
        self._encoder = _Encoder(model, self.heap)

    async def of(
        self,
        given: Sequence[str | list[int]],
        bound: TextBound = DEFAULT_BOUND,
        *,
        add_special_tokens: bool = True,
    ) -> list[Prompt]:
        """Raises SemipdError: `invalid_text`, `overloaded`, `request_too_large`, and the bound's own."""
        texts = [one for one in given if isinstance(one, str)]
        num_given = sum(len(one) for one in given if not isinstance(one, str))
        encoded = iter(await self._encoder.encode(texts, bound, num_given, add_special_tokens))
        return [Prompt(next(encoded), one) if isinstance(one, str) else Prompt(one) for one in given]

    async def of_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        bound: TextBound = DEFAULT_BOUND,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        template_options: Mapping[str, object] | None = None,
    ) -> Prompt:
        """The conversation as the checkpoint's chat template writes it, special tokens included.
        `template_options`: variables for a template that names them; None stands for none.

        Raises SemipdError: `no_chat_template`, and what `of` and Renderer.render raise.
        """
        template, renderer = self._template()
        known = [_with_known_role(message, template) for message in messages]
        named = {name: value for name, value in (template_options or {}).items() if value is not None}
        extra = {name: value for name, value in named.items() if template.names(name)}
        extra |= _checked(template_kwargs or {})
        conversation = Conversation(known, add_generation_prompt, continue_final_message, extra)
        text = await renderer.render(conversation)
        bound = replace(bound, param="messages")
        [token_ids] = await self._encoder.encode([text], bound, 0, add_special_tokens)
        return Prompt(token_ids, text, opens_text=not continue_final_message)

    async def try_template(self) -> SemipdError | None:
        """What became of a short conversation. Raises SemipdError(`invalid_chat_template`) when the template
        does not compile."""
        return await self._renderer.trial() if isinstance(self._renderer, RenderPool) else None

    def rendering_to_wire(self) -> RenderingState:
        return rendering_to_wire() if self._renderer is None else self._renderer.to_wire()

    async def close(self) -> None:
        if self._renderer is not None:
            await self._renderer.close()
        self.heap.close()
        self._encoder.close()

    def _template(self) -> tuple[MessageTemplate, Renderer]:
        template = self._model.chat_template
        if template is None or self._renderer is None:
            raise SemipdError(
                "no_chat_template",
                "The model has no chat template.",
                "Send a prompt to /v1/completions instead of messages.",
                param="messages",
            )
        return template, self._renderer


def _renderer(template: MessageTemplate, limits: LimitsConfig) -> Renderer:
    """A checkpoint's template gets a process of its own."""
    if isinstance(template, ChatTemplate):
        return RenderPool(template, limits)
    return DirectRenderer(template)


class _Encoder:
    """Texts to token ids, within bounds: of each text, of a request, of all that is under way."""

    def __init__(self, model: ServedModel, heap: HeapTrimmer) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="tokenize")
        self._heap = heap
        self._num_chars = 0
        self._is_quick = True

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, texts: Sequence[str], bound: TextBound, num_given: int, add_special_tokens: bool
    ) -> list[list[int]]:
        """`num_given`: tokens that the request has besides."""
        for text in texts:
            self._check_length(text, bound)
        found = self._encode_all(texts, bound, num_given, add_special_tokens)
        num_chars = sum(map(len, texts))
        is_short = num_chars <= INLINE_ENCODE_CHARS and len(texts) <= INLINE_TEXTS
        encoded = self._encode_inline(found) if is_short else []
        if len(encoded) == len(texts):
            return encoded
        with self._under_way(num_chars):
            rest = asyncio.get_running_loop().run_in_executor(self._threads, list, found)
            return encoded + await rest

    def _encode_inline(self, found: Iterator[list[int]]) -> list[list[int]]:
        """As many as there are while the tokenizer has always been quick."""
        encoded: list[list[int]] = []
        while self._is_quick:
            start_s = time.thread_time()
            try:
                token_ids = next(found, None)
            finally:
                self._note(time.thread_time() - start_s)
            if token_ids is None:
                break
            encoded.append(token_ids)
        return encoded

    def _note(self, took_s: float) -> None:
        if took_s > SLOW_ENCODE_S:
            self._is_quick = False
            log.info("a short text took %.0f ms to tokenize; from now on threads do it", took_s * 1e3)

    def _check_length(self, text: str, bound: TextBound) -> None:
        tokenizer = self._model.tokenizer
        if isinstance(tokenizer, Tokenizer) and tokenizer.chars_per_token is not None:
            tokenizer.chars_per_token.check(text, bound)

    def _encode_all(
        self, texts: Sequence[str], bound: TextBound, num_given: int, add_special_tokens: bool
    ) -> Iterator[list[int]]:
        num_tokens = num_given
        for text in texts:
            token_ids = self._encode(text, bound, add_special_tokens)
            num_tokens += len(token_ids)
            if num_tokens > max(MAX_REQUEST_TOKENS, bound.max_tokens):
                raise _too_many_tokens(num_tokens)
            yield token_ids

    def _encode(self, text: str, bound: TextBound, add_special_tokens: bool) -> list[int]:
        """A much too long text shows it at its start: the rest would cost time and memory for nothing."""
        encode = self._model.tokenizer.encode
        num_chars = bound.max_tokens * PREFIX_CHARS_PER_TOKEN
        while num_chars < len(text):
            num_tokens = len(encode(text[:num_chars], add_special_tokens=False))
            if num_tokens > bound.max_tokens * CERTAINTY:
                raise bound.too_many_tokens(num_tokens, num_chars, len(text))
            num_chars *= _GROWTH
        token_ids = encode(text, add_special_tokens=add_special_tokens)
        bound.check(len(token_ids))
        return token_ids

    @contextmanager
    def _under_way(self, num_chars: int) -> Iterator[None]:
        if self._num_chars and self._num_chars + num_chars > MAX_PREPARING_CHARS:
            message = f"Texts of {self._num_chars} characters wait to be tokenized."
            hint = f"The limit is {MAX_PREPARING_CHARS}. Send the request again later."
            raise SemipdError("overloaded", message, hint, retry_after_s=1)
        self._num_chars += num_chars
        try:
            yield
        finally:
            self._num_chars -= num_chars
            self._heap.note(num_chars * WORKING_BYTES)


async def beside_loop(work: Callable[[], T], *, when: bool) -> T:
    """`work()`, in a thread when it is long."""
    return await asyncio.to_thread(work) if when else work()


def _too_many_tokens(num_tokens: int) -> SemipdError:
    return SemipdError(
        "request_too_large",
        f"The request's prompts have {num_tokens} tokens or more together; "
        f"one request may bring {MAX_REQUEST_TOKENS}.",
        "Send the prompts in several requests.",
        param="prompt",
    )


def _checked(template_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in template_kwargs:
        if name in _RESERVED_NAMES:
            raise SemipdError(
                "invalid_value",
                f"chat_template_kwargs may not hold {name}.",
                f"Send {name} as a field of the request.",
                param="chat_template_kwargs",
            )
    return template_kwargs


def _with_known_role(message: Mapping[str, Any], template: MessageTemplate) -> Mapping[str, Any]:
    """`developer` is OpenAI's newer word for `system`; most templates drop what they do not know."""
    if message.get("role") == "developer" and not template.names_role("developer"):
        return {**message, "role": "system"}
    return message
