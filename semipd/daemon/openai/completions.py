"""POST /v1/completions."""

import time
from collections.abc import Iterator

from aiohttp import web

from semipd.daemon.history.usage import Usage
from semipd.daemon.model.text import TokenDecoder
from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.openai.answer_types import Completion, CompletionChoice, CompletionLogprobs
from semipd.daemon.openai.answers import answer, parse, served
from semipd.daemon.openai.bodies import CompletionOptions, CompletionRequest
from semipd.daemon.openai.logprobs import (
    CompletionWriter,
    join_completion_logprobs,
    prompt_logprobs,
)
from semipd.daemon.prompts.prompt import Prompt
from semipd.daemon.requests.choices import Choice, Choices, Origin
from semipd.daemon.requests.generation import Piece
from semipd.daemon.state.services import Services
from semipd.daemon.web.errors import ARRIVAL_NS, CALLER, REQUEST_ID

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""


async def create_completion(services: Services, request: web.Request) -> web.StreamResponse:
    body = parse(CompletionRequest, await request.read(), services)
    service, request_id = services.generation, request[REQUEST_ID]
    special = body.add_special_tokens is not False
    num_known_tokens = sum(len(prompt) for prompt in body.prompts if isinstance(prompt, list))
    num_sequences = len(body.prompts) * body.num_choices
    service_terms = served(services, request, body)
    with services.enter(service_terms, num_sequences, num_known_tokens * body.num_choices) as reservation:
        async with service.preparing(body, request[ARRIVAL_NS]):
            prompts = await service.prompts.of(
                body.prompts, service.prompt_bound(body), add_special_tokens=special
            )
        prepared = [service.prepare(prompt, body, DEFAULT_MAX_TOKENS) for prompt in prompts]
        origin = Origin(request_id, request[ARRIVAL_NS], request[CALLER], service_terms)
        choices = Choices(service, origin, prepared, body.num_choices, reservation)
        shape = CompletionShape(f"cmpl-{request_id}", services.model_name, body, service.texts)
        return await answer(request, choices, shape, body)


class CompletionShape:
    def __init__(self, answer_id: str, model: str, body: CompletionOptions, texts: TokenTexts) -> None:
        self._id = answer_id
        self._created_s = int(time.time())
        self._model = model
        self._body = body
        self._texts = texts
        self._writers: dict[int, CompletionWriter] = {}

    def whole(self, first: Choice, usage: Usage) -> Completion:
        return {**self._frame([]), "usage": usage}

    def opening(self, choice: Choice) -> Iterator[Completion]:
        yield from ()

    def chunks(self, choice: Choice, piece: Piece) -> Iterator[Completion]:
        is_first = not choice.started
        if piece.text or piece.finish_reason is not None or self._has_news(piece, is_first=is_first):
            yield self._frame([self.choice(choice, piece, is_first=is_first)])

    def _has_news(self, piece: Piece, *, is_first: bool) -> bool:
        """Besides text: what the request asked for of the prompt and of each token."""
        body = self._body
        of_tokens = body.return_token_ids or body.logprobs is not None
        of_prompt = body.return_token_ids or body.echo or body.prompt_logprobs is not None
        return bool((of_tokens and piece.token_ids) or (of_prompt and is_first))

    def usage_chunk(self) -> Completion:
        return self._frame([])

    def _frame(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created_s,
            "model": self._model,
            "choices": choices,
        }

    def choice(self, choice: Choice, piece: Piece, *, is_first: bool = True) -> CompletionChoice:
        prompt, echo = choice.prepared.prompt, self._body.echo and is_first
        echoed = self._text_of(prompt) if echo else ""
        shown: CompletionChoice = {
            "index": choice.index,
            "text": echoed + piece.text,
            "logprobs": None,
            "finish_reason": piece.openai_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.logprobs is not None:
            shown["logprobs"] = self._logprobs(choice, piece, echoed if echo else None)
        if self._body.return_token_ids:
            shown["token_ids"] = piece.token_ids
            if is_first:
                shown["prompt_token_ids"] = prompt.token_ids
        if self._body.prompt_logprobs is not None and is_first:
            entries = choice.prompt_logprobs
            shown["prompt_logprobs"] = prompt_logprobs(entries, self._body.prompt_logprobs, self._texts)
        return shown

    def _logprobs(self, choice: Choice, piece: Piece, echoed: str | None) -> CompletionLogprobs:
        """`echoed`: the prompt's text if it is part of this choice's text."""
        prompt = choice.prepared.prompt
        writer = self._writers.get(choice.index)
        if writer is None:
            writer = self._writers[choice.index] = self._writer(prompt)
        if echoed is None:
            return writer.tokens(piece.logprobs)
        is_given = prompt.text is not None
        shown = writer.prompt(prompt.token_ids, choice.prompt_logprobs, echoed, is_given=is_given)
        return join_completion_logprobs(shown, writer.tokens(piece.logprobs))

    def _writer(self, prompt: Prompt) -> CompletionWriter:
        body = self._body
        decoder = self._decoder()
        if not prompt.opens_text:
            decoder.prime(prompt.token_ids)
        as_ids = bool(body.return_tokens_as_token_ids)
        return CompletionWriter(self._texts, decoder, body.logprobs or 0, as_ids=as_ids)

    def _text_of(self, prompt: Prompt) -> str:
        """As the client sent it: of token ids all are shown, special ones too, whatever is done with those
        that are generated. A character that they have begun stands in the generated text."""
        if prompt.text is not None:
            return prompt.text
        is_whole = prompt.opens_text or self._body.prompt_only
        num_held = 0 if is_whole else self._decoder().prime(prompt.token_ids)
        shown = prompt.token_ids[: len(prompt.token_ids) - num_held]
        return self._texts.tokenizer.decode(shown, skip_special_tokens=False)

    def _decoder(self) -> TokenDecoder:
        skip_special = self._body.skip_special_tokens is not False
        return self._texts.tokenizer.stream_decoder(skip_special_tokens=skip_special)
