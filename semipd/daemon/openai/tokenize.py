"""Tokenizing for clients, over HTTP and the socket, with vLLM's fields; and GET /tokenizer_info."""

from collections.abc import Mapping
from functools import partial

from aiohttp import web

from semipd.core.sampling import check_ids
from semipd.daemon.openai.answer_types import DetokenizeAnswer, TokenizeAnswer
from semipd.daemon.openai.answers import parse
from semipd.daemon.openai.bodies import DetokenizeRequest, TokenizeFields, TokenizeRequest
from semipd.daemon.openai.chat import prompt_of
from semipd.daemon.openai.logprobs import INLINE_LOGPROBS
from semipd.daemon.prompts.prompt import beside_loop
from semipd.daemon.requests.generation import GenerationService
from semipd.daemon.state.services import Services
from semipd.daemon.web.json_text import parts_of


async def _answer(shown: Mapping[str, object], *, is_large: bool) -> web.Response:
    """A large one is written in a thread."""
    body = await beside_loop(lambda: b"".join(parts_of(shown)), when=is_large)
    return web.Response(body=body, content_type="application/json", charset="utf-8")


async def tokenize(services: Services, request: web.Request) -> web.Response:
    body = parse(TokenizeRequest, await request.read(), services)
    shown = await tokenized(services.generation, body)
    return await _answer(shown, is_large=shown["count"] > INLINE_LOGPROBS)


async def detokenize(services: Services, request: web.Request) -> web.Response:
    body = parse(DetokenizeRequest, await request.read(), services)
    shown = await detokenized(services.generation, body.tokens)
    return await _answer(shown, is_large=len(body.tokens) > INLINE_LOGPROBS)


async def tokenizer_info(services: Services, _request: web.Request) -> web.Response:
    return await _answer(dict(services.generation.model.tokenizer_info), is_large=True)


async def tokenized(service: GenerationService, body: TokenizeFields) -> TokenizeAnswer:
    """Raises what Prompts raises."""
    token_ids = (await prompt_of(service.prompts, body, body, service.text_bound)).token_ids
    pieces = service.model.tokenizer.pieces
    spelled = None
    if body.return_token_strs:
        spelled = await beside_loop(lambda: pieces(token_ids), when=len(token_ids) > INLINE_LOGPROBS)
    return {
        "count": len(token_ids),
        "max_model_len": service.limits.max_model_len,
        "tokens": token_ids,
        "token_strs": spelled,
    }


async def detokenized(service: GenerationService, tokens: list[int]) -> DetokenizeAnswer:
    """Raises SemipdError(`invalid_value`) when one is not in the vocabulary."""
    check_ids(tokens, service.limits.vocab_size, "tokens")
    decode = partial(service.model.tokenizer.decode, tokens, skip_special_tokens=False)
    return {"prompt": await beside_loop(decode, when=len(tokens) > INLINE_LOGPROBS)}
