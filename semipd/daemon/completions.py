"""POST /v1/completions, streaming or not."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from semipd.core.errors import SemipdError
from semipd.daemon.generation import Generation, Piece
from semipd.daemon.http_errors import REQUEST_ID, error_body
from semipd.daemon.schema import CompletionRequest, StreamOptions, refusal, refuse_unsupported
from semipd.daemon.services import Services, usage_to_wire

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""

WRITE_LIMIT_S = 60.0
"""A client that reads nothing for so long has gone."""


class Completions:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = self._parse(await request.read())
        opened = self._services.generation.open(request[REQUEST_ID], body.prompt, body, DEFAULT_MAX_TOKENS)
        async with opened as generation:
            frame = _Frame(f"cmpl-{request[REQUEST_ID]}", int(time.time()), self._services.model_name)
            if body.stream:
                options = body.stream_options or StreamOptions()
                return await _Stream(request, generation, frame, options).run()
            return await _whole(generation, frame)

    def _parse(self, raw: bytes) -> CompletionRequest:
        try:
            body = CompletionRequest.model_validate_json(raw)
        except ValidationError as error:
            raise refusal(error) from error
        self._services.check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise SemipdError("invalid_value", "stream_options needs stream=true.", param="stream_options")
        self._services.ignore_fields(refuse_unsupported(body.model_extra or {}))
        return body


@dataclass(frozen=True, slots=True)
class _Frame:
    """What every object of one answer repeats."""

    id: str
    created_s: int
    model: str

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


async def _whole(generation: Generation, frame: _Frame) -> web.Response:
    pieces = [piece async for piece in generation.pieces()]
    choice = _choice("".join(piece.text for piece in pieces), pieces[-1].finish_reason)
    return web.json_response(frame.body([choice]) | {"usage": usage_to_wire(generation.usage)})


class _Stream:
    """Server-sent events. Headers wait for the first piece, so an early failure has its own status."""

    def __init__(
        self, request: web.Request, generation: Generation, frame: _Frame, options: StreamOptions
    ) -> None:
        self._request = request
        self._generation = generation
        self._frame = frame
        self._include_usage = bool(options.include_usage)
        self._continuous_usage = bool(options.continuous_usage_stats)
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def run(self) -> web.StreamResponse:
        async with aclosing(self._generation.pieces()) as pieces:
            first = await anext(pieces)
            try:
                await self._response.prepare(self._request)
                await self._send_all(first, pieces)
                await self._response.write_eof()
            except (ConnectionError, TimeoutError):
                # The client has gone or reads nothing; who opened the generation cancels it now.
                if self._request.transport is not None:
                    self._request.transport.abort()
        return self._response

    async def _send_all(self, first: Piece, rest: AsyncIterator[Piece]) -> None:
        try:
            await self._send_piece(first)
            async for piece in rest:
                await self._send_piece(piece)
        except SemipdError as error:
            await self._send(error_body(error))
            return
        if self._include_usage:
            await self._send(self._frame.body([]) | self._usage())
        await self._write(b"data: [DONE]\n\n")

    async def _send_piece(self, piece: Piece) -> None:
        if not piece.text and piece.finish_reason is None:
            return
        body = self._frame.body([_choice(piece.text, piece.finish_reason)])
        if self._continuous_usage:
            body |= self._usage()
        elif self._include_usage:
            body["usage"] = None
        await self._send(body)

    def _usage(self) -> dict[str, Any]:
        return {"usage": usage_to_wire(self._generation.usage)}

    async def _send(self, body: dict[str, Any]) -> None:
        await self._write(b"data: " + json.dumps(body).encode() + b"\n\n")

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_LIMIT_S):
            await self._response.write(data)
