"""`generate` over the socket: the choices of one request, as items."""

import uuid
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from semipd.core.errors import SemipdError
from semipd.core.slo import DEFAULT_CLASS
from semipd.daemon.openai.answers import num_numbers, num_prompt_numbers, usage_of
from semipd.daemon.openai.chat import prompt_of
from semipd.daemon.openai.completions import CompletionShape
from semipd.daemon.openai.logprobs import INLINE_LOGPROBS
from semipd.daemon.prompts.prompt import beside_loop
from semipd.daemon.requests.choices import Choice, Choices, Origin
from semipd.daemon.requests.generation import Piece
from semipd.daemon.requests.schema import WHOLE_VOCABULARY
from semipd.daemon.servers.socket_bodies import GenerateRequest
from semipd.daemon.servers.socket_session import Session
from semipd.daemon.web.json_text import Later

MAX_ITEM_TOKENS = 2**15
MAX_ITEM_CHARS = 2**18
"""Longer pieces come as several items, each far below the bound of a frame."""


async def generate(session: Session, request: GenerateRequest, arrival_ns: int) -> None:
    """Answers with items. Raises SemipdError: the end of the request, all its choices included."""
    request_id = request.request_id or uuid.uuid4().hex
    services, service_class = session.services, DEFAULT_CLASS
    try:
        with services.serving():
            served = services.classes.service(session.caller, request)
            service_class = served.service_class
            origin = Origin(request_id, arrival_ns, session.caller, served)
            await _generate_as(origin, session, request)
    except SemipdError as error:
        services.history.answered_with_error(error.code, request_id, arrival_ns, service_class)
        raise


async def _generate_as(origin: Origin, session: Session, request: GenerateRequest) -> None:
    request.check()
    services, service = session.services, session.services.generation
    services.check_model(request.model)
    session.take_token()
    num_known_tokens = len(request.prompt) if isinstance(request.prompt, list) else 0
    with services.enter(
        origin.service, request.num_choices, num_known_tokens * request.num_choices
    ) as reservation:
        async with service.preparing(request, origin.arrival_ns):
            prompt = await prompt_of(service.prompts, request, request, service.prompt_bound(request))
        prepared = service.prepare(prompt, request)
        choices = Choices(service, origin, [prepared], request.num_choices, reservation)
        with choices:
            session.generations[request.id] = choices
            try:
                await _Items(session, request, choices).send_all()
            finally:
                del session.generations[request.id]


class _Items:
    """The fields of an item are those of a choice over HTTP. Who named no `n` reads of one choice only."""

    def __init__(self, session: Session, request: GenerateRequest, choices: Choices) -> None:
        self._stream, services = session.stream, session.services
        self._request = request
        self._choices = choices
        self._shape = CompletionShape("", services.model_name, request, services.generation.texts)
        self._num_open = len(choices.all)
        self._has_details = bool(
            request.echo
            or request.return_token_ids
            or request.logprobs is not None
            or request.prompt_logprobs is not None
        )
        self._numbers_per_token = 2 + self._num_alternatives(services.generation.limits.vocab_size)

    def _num_alternatives(self, vocab_size: int) -> int:
        """The most that is told of one token."""
        asked = (self._request.num_logprobs or 0, self._request.num_prompt_logprobs or 0)
        return vocab_size if WHOLE_VOCABULARY in asked else max(asked)

    async def send_all(self) -> None:
        async with aclosing(self._choices.updates()) as updates:
            async for update in updates:
                for choice, piece in update:
                    await self._send(choice, piece)
        for choice in self._choices.all:
            if choice.generation is None:  # cancelled before it began
                await self._send(choice, Piece("", [], "cancelled"))

    async def _send(self, choice: Choice, piece: Piece) -> None:
        item = await self._detailed(choice, piece) if self._has_details else self._plain(choice, piece)
        for part in split(item, self._end(choice, piece), self._numbers_per_token):
            with self._choices.sending():
                await self._stream.say(part)

    def _plain(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._request.id, "text": piece.text, "token_ids": piece.token_ids}
        if self._request.n is not None:
            item["index"] = choice.index
        return item

    async def _detailed(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        is_first = choice.generation is not None and not choice.started
        size = num_numbers(piece, self._request) + (num_prompt_numbers(choice) if is_first else 0)
        is_long = size > INLINE_LOGPROBS
        return await beside_loop(lambda: self._item(choice, piece, is_first=is_first), when=is_long)

    def _item(self, choice: Choice, piece: Piece, *, is_first: bool) -> dict[str, Any]:
        shown = self._shape.choice(choice, replace(piece, finish_reason=None), is_first=is_first)
        item = self._plain(choice, piece) | {"text": shown["text"]}
        if self._request.logprobs is not None:
            item["logprobs"] = shown["logprobs"]
        for name in ("prompt_token_ids", "prompt_logprobs"):
            if name in shown:
                item[name] = shown[name]
        return item

    def _end(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """What the last item of a choice adds; the last one of all has the usage."""
        if piece.finish_reason is None:
            return {}
        self._num_open -= 1
        end: dict[str, Any] = {"finish_reason": piece.finish_reason}
        if self._request.n is not None:
            end["stop_reason"] = piece.stop_reason
        if not self._num_open:
            end["usage"] = usage_of(self._choices, self._request)
        return end


def split(item: dict[str, Any], end: dict[str, Any], numbers_per_token: int) -> Iterator[dict[str, Any]]:
    """Items that say the same one after the other: texts and lists of the parts, joined, are the whole's.
    The last one has `end`, too."""
    if item.keys() <= _ALWAYS and len(item["text"]) + len(item["token_ids"]) <= MAX_ITEM_TOKENS:
        yield item | end  # nearly all of them
        return
    most_entries = max(INLINE_LOGPROBS // numbers_per_token, 1)
    count = max(_num_parts(name, value, most_entries) for name, value in item.items())
    for idx in range(count):
        parts = {name: _part(name, value, most_entries, idx) for name, value in item.items()}
        shown = {name: part for name, part in parts.items() if part or name in _ALWAYS}
        yield shown | (end if idx == count - 1 else {})


_ALWAYS = frozenset({"id", "index", "text", "token_ids"})
_MOST = {"text": MAX_ITEM_CHARS, "token_ids": MAX_ITEM_TOKENS, "prompt_token_ids": MAX_ITEM_TOKENS}


def _num_parts(name: str, value: Any, most_entries: int) -> int:
    if name in _MOST:
        return -(-len(value) // _MOST[name])
    if name == "logprobs":
        return -(-len(value["tokens"]) // most_entries)
    return -(-len(value) // most_entries) if name == "prompt_logprobs" else 1


def _part(name: str, value: Any, most_entries: int, idx: int) -> Any:
    if name == "logprobs":
        parts = {inner: _part("", of_inner, most_entries, idx) for inner, of_inner in value.items()}
        return parts if parts["tokens"] else None
    if name in ("id", "index"):
        return value
    size = _MOST.get(name, most_entries)
    part = value[idx * size : (idx + 1) * size]
    if name == "prompt_logprobs":
        return [entry.make() if isinstance(entry, Later) else entry for entry in part]
    return part
