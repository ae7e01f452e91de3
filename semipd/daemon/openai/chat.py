"""POST /v1/chat/completions."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from semipd.daemon.history.usage import Usage
from semipd.daemon.model.text_bounds import TextBound
from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.openai.answer_types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
)
from semipd.daemon.openai.answers import answer, parse, served
from semipd.daemon.openai.bodies import ChatCompletionRequest, TemplateFields
from semipd.daemon.openai.logprobs import chat_logprobs, prompt_logprobs
from semipd.daemon.prompts.prompt import Prompt, Prompts
from semipd.daemon.requests.choices import Choice, Choices, Origin
from semipd.daemon.requests.generation import Piece
from semipd.daemon.requests.messages import ChatMessage
from semipd.daemon.state.services import Services
from semipd.daemon.web.errors import ARRIVAL_NS, CALLER, REQUEST_ID

MESSAGES_AT_ONCE = 500
"""Made ready for the template without a pause: about a millisecond."""


async def create_chat_completion(services: Services, request: web.Request) -> web.StreamResponse:
    body = parse(ChatCompletionRequest, await request.read(), services)
    service, request_id = services.generation, request[REQUEST_ID]
    service_terms = served(services, request, body)
    with services.enter(service_terms, body.num_choices) as reservation:
        async with service.preparing(body, request[ARRIVAL_NS]):
            prompt = await conversation_prompt(
                service.prompts, body.messages, body, service.prompt_bound(body)
            )
        prepared = service.prepare(prompt, body)
        origin = Origin(request_id, request[ARRIVAL_NS], request[CALLER], service_terms)
        choices = Choices(service, origin, [prepared], body.num_choices, reservation)
        shape = _ChatShape(f"chatcmpl-{request_id}", services.model_name, body, service.texts)
        return await answer(request, choices, shape, body)


class ConversationSource(Protocol):
    """What a prompt is made of: `prompt`, or `messages` if there are some."""

    @property
    def prompt(self) -> str | list[int] | None: ...

    @property
    def messages(self) -> Sequence[ChatMessage] | None: ...


async def prompt_of(
    prompts: Prompts, source: ConversationSource, options: TemplateFields, bound: TextBound
) -> Prompt:
    """Raises what Prompts.of and Prompts.of_messages raise."""
    if source.messages is not None:
        return await conversation_prompt(prompts, source.messages, options, bound)
    special = options.add_special_tokens is not False
    [prompt] = await prompts.of([source.prompt or ""], bound, add_special_tokens=special)
    return prompt


async def conversation_prompt(
    prompts: Prompts, messages: Sequence[ChatMessage], options: TemplateFields, bound: TextBound
) -> Prompt:
    """Raises what Prompts.of_messages raises."""
    return await prompts.of_messages(
        await for_template(messages),
        bound,
        add_generation_prompt=options.add_generation_prompt is not False,
        continue_final_message=bool(options.continue_final_message),
        add_special_tokens=bool(options.add_special_tokens),
        template_kwargs=options.chat_template_kwargs,
        template_options=options.template_options,
    )


async def for_template(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Raises SemipdError(`missing_field`)."""
    shown: list[dict[str, Any]] = []
    for start in range(0, len(messages), MESSAGES_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        shown += [message.for_template() for message in messages[start : start + MESSAGES_AT_ONCE]]
    return shown


class _ChatShape:
    def __init__(self, answer_id: str, model: str, body: ChatCompletionRequest, texts: TokenTexts) -> None:
        self._id = answer_id
        self._created_s = int(time.time())
        self._model = model
        self._body = body
        self._texts = texts

    def whole(self, first: Choice, usage: Usage) -> ChatCompletion:
        shown: ChatCompletion = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created_s,
            "model": self._model,
            "choices": [],
            "usage": usage,
        }
        if self._body.return_token_ids:
            shown["prompt_token_ids"] = first.prepared.prompt.token_ids
        if self._body.prompt_logprobs is not None:
            entries = first.prompt_logprobs
            shown["prompt_logprobs"] = prompt_logprobs(entries, self._body.prompt_logprobs, self._texts)
        return shown

    def chunks(self, choice: Choice, piece: Piece) -> Iterator[ChatChunk]:
        with_tokens = self._body.return_token_ids or self._body.logprobs
        if not piece.text and piece.finish_reason is None and not (with_tokens and piece.token_ids):
            return
        shown: ChatChunkChoice = {
            "index": choice.index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.openai_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            shown["token_ids"] = piece.token_ids
        yield self._chunk([shown])

    def usage_chunk(self) -> ChatChunk:
        return self._chunk([])

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created_s,
            "model": self._model,
            "choices": choices,
        }

    def opening(self, choice: Choice) -> Iterator[ChatChunk]:
        """The role; the first choice's also carries what is said of the prompt."""
        chunk = self._chunk(
            [
                {
                    "index": choice.index,
                    "delta": {"role": "assistant", "content": "", "refusal": None},
                    "logprobs": None,
                    "finish_reason": None,
                    "stop_reason": None,
                }
            ]
        )
        if choice.first is None and self._body.return_token_ids:
            chunk["prompt_token_ids"] = choice.prepared.prompt.token_ids
        if choice.first is None and self._body.prompt_logprobs is not None:
            entries = choice.prompt_logprobs
            chunk["prompt_logprobs"] = prompt_logprobs(entries, self._body.prompt_logprobs, self._texts)
        yield chunk

    def choice(self, choice: Choice, piece: Piece) -> ChatChoice:
        assert piece.openai_reason is not None, f"choice {choice.index} has not ended"
        shown: ChatChoice = {
            "index": choice.index,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.openai_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            shown["token_ids"] = piece.token_ids
        return shown

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        as_ids = bool(self._body.return_tokens_as_token_ids)
        return chat_logprobs(piece.logprobs, self._texts, as_ids=as_ids)
