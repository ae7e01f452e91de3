"""Writes an answer of the OpenAI endpoints: whole, or as server-sent events."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from semipd.core.errors import SemipdError
from semipd.daemon.access.classes import Service
from semipd.daemon.history.record import timing_to_wire
from semipd.daemon.history.usage import Usage
from semipd.daemon.openai.bodies import AnswerOptions, HttpBody, StreamOptions
from semipd.daemon.openai.logprobs import INLINE_LOGPROBS
from semipd.daemon.requests.choices import Choice, Choices, Update
from semipd.daemon.requests.generation import Piece
from semipd.daemon.requests.schema import SamplingOptions, refusal
from semipd.daemon.state.services import Services, usage_to_wire
from semipd.daemon.web.error_types import Partial, PartialChoice
from semipd.daemon.web.errors import CALLER, SERVICE_CLASS, error_body, error_response
from semipd.daemon.web.json_text import Later, parts_of
from semipd.daemon.web.streaming import (
    DONE,
    closed_if_unread,
    event,
    event_in_parts,
    event_stream,
    write_all,
)

Body = TypeVar("Body", bound=HttpBody)


class Shape(Protocol):
    """How one endpoint writes. Used for one answer only; it may remember what it has written of a choice."""

    def whole(self, first: Choice, usage: Usage) -> Mapping[str, object]:
        """The answer without streaming, but for its choices."""

    def choice(self, choice: Choice, piece: Piece) -> Mapping[str, object]:
        """One of its choices; `piece`: all its pieces joined."""

    def opening(self, choice: Choice) -> Iterable[Mapping[str, object]]:
        """The events before a choice's first piece, which carry no token; without usage."""

    def chunks(self, choice: Choice, piece: Piece) -> Iterable[Mapping[str, object]]:
        """The events of a piece, without usage."""

    def usage_chunk(self) -> Mapping[str, object]:
        """The event that only carries the usage, without it."""


def parse(kind: type[Body], raw: bytes, services: Services) -> Body:
    """Unknown fields are counted. Raises SemipdError: the first problem of the body."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise refusal(error) from error
    services.check_model(body.model)
    body.check()
    services.ignore_fields(body.unknown_fields())
    return body


def served(services: Services, request: web.Request, options: SamplingOptions) -> Service:
    """What the request is served under. Raises SemipdError: `unknown_class`, `class_not_allowed`."""
    found = services.classes.service(request[CALLER], options, request[SERVICE_CLASS])
    request[SERVICE_CLASS] = found.service_class
    return found


async def answer(
    request: web.Request, choices: Choices, shape: Shape, options: AnswerOptions
) -> web.StreamResponse:
    """Generates the choices and sends them. Raises SemipdError until the first byte has left."""
    with choices:
        if options.stream:
            return await _Stream(request, choices, shape, options).run()
        return await _whole(request, choices, shape, options)


async def _whole(
    request: web.Request, choices: Choices, shape: Shape, options: AnswerOptions
) -> web.StreamResponse:
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in choices.all}
    size = sum(map(num_prompt_numbers, choices.all))
    try:
        async for fresh in choices.updates():
            for choice, piece in fresh:
                pieces[choice.index].append(piece)
                size += num_numbers(piece, options)
    except SemipdError as error:
        return error_response(error, partial=_partial(pieces, usage_of(choices, options)))
    usage = usage_of(choices, options)

    def one(choice: Choice) -> Mapping[str, object]:
        return shape.choice(choice, _join(pieces.pop(choice.index)))

    def parts() -> list[bytes]:
        # one after the other: millions of numbers at once would cost the loop a garbage collection of all
        later = [Later(partial(one, choice)) for choice in choices.all]
        return parts_of({**shape.whole(choices.all[0], usage), "choices": later})

    if size > INLINE_LOGPROBS:
        return await _send_parts(request, await asyncio.to_thread(parts))
    return web.Response(body=b"".join(parts()), content_type="application/json", charset="utf-8")


async def _send_parts(request: web.Request, parts: Sequence[bytes]) -> web.StreamResponse:
    """A large answer, as the client takes it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    response.content_length = sum(map(len, parts))
    with closed_if_unread(request):
        await response.prepare(request)
        await write_all(response, parts)
        await response.write_eof()
    return response


def usage_of(choices: Choices, options: SamplingOptions) -> Usage:
    timing = timing_to_wire(choices.records, time.monotonic_ns()) if options.include_timing else None
    return usage_to_wire(choices.usage, timing)


def _partial(pieces: Mapping[int, Sequence[Piece]], usage: Usage) -> Partial | None:
    """Nobody has to pay twice for what had been generated when the answer failed."""
    choices: list[PartialChoice] = [
        {"index": index, "text": joined.text, "token_ids": joined.token_ids}
        for index, of_choice in pieces.items()
        if of_choice and (joined := _join(of_choice)).token_ids
    ]
    return {"choices": choices, "usage": usage} if choices else None


def _join(pieces: Sequence[Piece]) -> Piece:
    last = pieces[-1]
    return Piece(
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.token_ids],
        last.finish_reason,
        [entry for piece in pieces for entry in piece.logprobs],
        last.stop_reason,
    )


def num_numbers(piece: Piece, options: SamplingOptions) -> int:
    """Numbers to format, at most."""
    return 1 + len(piece.token_ids) * (1 + _per_token(options.num_logprobs))


def num_prompt_numbers(choice: Choice) -> int:
    """Likewise for what an answer may say of its prompt."""
    prepared = (choice.first or choice).prepared
    return len(prepared.prompt.token_ids) * (1 + _per_token(prepared.params.prompt_logprobs))


def _per_token(num_alternatives: int | None) -> int:
    return 0 if num_alternatives is None else 1 + num_alternatives


class _RunningUsage:
    """Tokens that have been sent so far. Those of a piece that has no event of its own, such as half a
    character, are sent with the next one of their choice."""

    def __init__(self) -> None:
        self._num_sent = 0
        self._unsent: Counter[int] = Counter()

    def add(self, choice: int, num_tokens: int) -> None:
        self._unsent[choice] += num_tokens

    def send(self, choice: int) -> None:
        self._num_sent += self._unsent.pop(choice, 0)

    def of(self, usage: Usage) -> Usage:
        total = usage["prompt_tokens"] + self._num_sent
        return {**usage, "completion_tokens": self._num_sent, "total_tokens": total}


class _Stream:
    """Server-sent events. Headers wait for the first piece, so an early failure has its own status.
    `include_timing` asks for the usage, which carries it."""

    def __init__(self, request: web.Request, choices: Choices, shape: Shape, options: AnswerOptions) -> None:
        stream_options = options.stream_options or StreamOptions()
        self._request = request
        self._choices = choices
        self._shape = shape
        self._options = options
        self._include_usage = bool(stream_options.include_usage or options.include_timing)
        self._running = _RunningUsage() if stream_options.wants_usage_always else None
        self._response = event_stream()

    async def run(self) -> web.StreamResponse:
        async with aclosing(self._choices.updates()) as updates:
            first = await anext(updates)
            with closed_if_unread(self._request):  # leaving the choices cancels them
                await self._response.prepare(self._request)
                await self._send_all(first, updates)
                await self._response.write_eof()
        return self._response

    async def _send_all(self, first: list[Update], rest: AsyncIterator[list[Update]]) -> None:
        try:
            await self._send_update(first)
            async for update in rest:
                await self._send_update(update)
        except SemipdError as error:
            await self._write(event(error_body(error)))
            return
        if self._include_usage:
            usage = usage_of(self._choices, self._options)
            await self._write(event({**self._shape.usage_chunk(), "usage": usage}))
        await self._write(DONE)

    async def _send_update(self, update: list[Update]) -> None:
        size = sum(num_numbers(piece, self._options) for _, piece in update)
        size += sum(num_prompt_numbers(choice) for choice, _ in update if not choice.started)
        is_long = size > INLINE_LOGPROBS
        usage = self._usage_now()
        if is_long:
            events = await asyncio.to_thread(lambda: list(self._long_events(update, usage)))
            await self._write(*events)
        elif data := b"".join(map(event, self._events(update, usage))):
            await self._write(data)

    def _long_events(self, update: list[Update], usage: Usage | None) -> Iterator[bytes]:
        for shown in self._events(update, usage):
            yield from event_in_parts(shown)

    def _events(self, update: list[Update], usage: Usage | None) -> Iterator[Mapping[str, object]]:
        """`usage`: of all that is known now, if the events show how much of it they have sent."""
        for choice, piece in update:
            if not choice.started:
                yield from (self._with_usage(chunk, usage) for chunk in self._shape.opening(choice))
            if self._running is not None:
                self._running.add(choice.index, len(piece.token_ids))
            for chunk in self._shape.chunks(choice, piece):
                if self._running is not None:
                    self._running.send(choice.index)
                yield self._with_usage(chunk, usage)

    def _with_usage(self, chunk: Mapping[str, object], usage: Usage | None) -> Mapping[str, object]:
        if usage is not None and self._running is not None:
            return {**chunk, "usage": self._running.of(usage)}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _usage_now(self) -> Usage | None:
        return None if self._running is None else usage_of(self._choices, self._options)

    async def _write(self, *parts: bytes) -> None:
        with self._choices.sending():
            await write_all(self._response, parts)
