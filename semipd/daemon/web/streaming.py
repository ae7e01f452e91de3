"""Answers that are written a part at a time, and the framing of server-sent events."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from aiohttp import web

from semipd.daemon.web.json_text import parts_of

WRITE_LIMIT_S = 60.0
"""A client that reads nothing for so long has gone."""

DONE = b"data: [DONE]\n\n"
"""The last event of a stream of OpenAI's."""


def event_stream() -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    return web.StreamResponse(headers=headers)


def event(data: Mapping[str, object], kind: str = "", event_id: str = "") -> bytes:
    """One server-sent event."""
    framed = b"data: " + json.dumps(data).encode() + b"\n\n"
    if kind:
        framed = f"event: {kind}\n".encode() + framed
    return f"id: {event_id}\n".encode() + framed if event_id else framed


def event_in_parts(data: Mapping[str, object]) -> Iterator[bytes]:
    """The same of a large value."""
    yield b"data: "
    yield from parts_of(data)
    yield b"\n\n"


async def write_all(response: web.StreamResponse, parts: Iterable[bytes]) -> None:
    """Raises TimeoutError when the client reads nothing, ConnectionError when it has gone."""
    for part in parts:
        async with asyncio.timeout(WRITE_LIMIT_S):
            await response.write(part)


@contextmanager
def closed_if_unread(request: web.Request) -> Iterator[None]:
    """A client that has gone or reads nothing loses its connection without a word: it would not read one."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
