"""Writes an answer of the OpenAI endpoints: whole, or as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from semipd.core.errors import SemipdError
from semipd.daemon.answer_types import Partial, PartialChoice, Usage
from semipd.daemon.choices import Choice, Choices, Update
from semipd.daemon.generation import Piece
from semipd.daemon.history import timing_to_wire
from semipd.daemon.http_errors import error_body, error_response
from semipd.daemon.prompts import beside_loop
from semipd.daemon.schema import refusal
from semipd.daemon.schema_openai import AnswerOptions, HttpBody, StreamOptions
from semipd.daemon.services import Services, usage_to_wire

WRITE_LIMIT_S = 60.0
"""A client that reads nothing for so long has gone."""

INLINE_LOGPROBS = 2000
"""More log-probabilities are formatted in a thread: this many take about two milliseconds."""

Body = TypeVar("Body", bound=HttpBody)


class Shape(Protocol):
    """How one endpoint writes. Used for one answer only; it may remember what it has written of a choice."""

    def whole(self, updates: Sequence[Update], usage: Usage) -> Mapping[str, object]:
        """The answer without streaming, from each choice with all its pieces joined."""

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


async def answer(
    request: web.Request, choices: Choices, shape: Shape, options: AnswerOptions
) -> web.StreamResponse:
    """Generates the choices and sends them. Raises SemipdError until the first byte has left."""
    with choices:
        if options.stream:
            return await _Stream(request, choices, shape, options).run()
        return await _whole(choices, shape, options)


async def _whole(choices: Choices, shape: Shape, options: AnswerOptions) -> web.Response:
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in choices.all}
    try:
        async for fresh in choices.updates():
            for choice, piece in fresh:
                pieces[choice.index].append(piece)
    except SemipdError as error:
        return error_response(error, partial=_partial(pieces, _usage_of(choices, options)))
    updates = [(choice, _join(pieces[choice.index])) for choice in choices.all]
    usage = _usage_of(choices, options)
    is_long = sum(_num_logprobs(*update, with_prompt=True) for update in updates) > INLINE_LOGPROBS
    text = await beside_loop(lambda: json.dumps(shape.whole(updates, usage)), when=is_long)
    return web.Response(text=text, content_type="application/json")


def _usage_of(choices: Choices, options: AnswerOptions) -> Usage:
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


def _num_logprobs(choice: Choice, piece: Piece, *, with_prompt: bool) -> int:
    """Numbers to format."""
    prompt = choice.prompt_logprobs if with_prompt else []
    return sum(1 + len(entry.top) for entries in (prompt, piece.logprobs) for entry in entries)


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
        self._continuous_usage = bool(stream_options.continuous_usage_stats)
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def run(self) -> web.StreamResponse:
        async with aclosing(self._choices.updates()) as updates:
            first = await anext(updates)
            try:
                await self._response.prepare(self._request)
                await self._send_all(first, updates)
                await self._response.write_eof()
            except (ConnectionError, TimeoutError):
                # The client has gone or reads nothing; leaving the choices cancels them.
                if self._request.transport is not None:
                    self._request.transport.abort()
        return self._response

    async def _send_all(self, first: list[Update], rest: AsyncIterator[list[Update]]) -> None:
        try:
            await self._send_update(first)
            async for update in rest:
                await self._send_update(update)
        except SemipdError as error:
            await self._write(_event(error_body(error)))
            return
        if self._include_usage:
            await self._write(_event({**self._shape.usage_chunk(), **self._usage()}))
        await self._write(b"data: [DONE]\n\n")

    async def _send_update(self, update: list[Update]) -> None:
        usage = self._usage() if self._continuous_usage else {"usage": None} if self._include_usage else {}

        def events() -> bytes:
            chunks = (chunk for choice, piece in update for chunk in self._shape.chunks(choice, piece))
            return b"".join(_event({**chunk, **usage}) for chunk in chunks)

        counts = (_num_logprobs(*one, with_prompt=not one[0].started) for one in update)
        data = await beside_loop(events, when=sum(counts) > INLINE_LOGPROBS)
        if data:
            await self._write(data)

    def _usage(self) -> dict[str, object]:
        return {"usage": _usage_of(self._choices, self._options)}

    async def _write(self, data: bytes) -> None:
        with self._choices.sending():
            async with asyncio.timeout(WRITE_LIMIT_S):
                await self._response.write(data)


def _event(body: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"
