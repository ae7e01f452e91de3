"""A small HTTP client for measuring: a connection per request, events stamped when their bytes arrive."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

from benchlib.load.http_parser import EventSplitter, ResponseParser, malformed
from semipd.core.errors import SemipdError

MAX_PLAIN_BODY_BYTES = 2**24
ANSWER_LIMIT_S = 30.0

EventSink = Callable[[bytes, float], None]
"""(an event's data, time.perf_counter() when its last byte came)."""


class HttpStatusError(SemipdError):
    """A status other than 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code, message)
        self.status = status

    @property
    def is_refusal(self) -> bool:
        """The server says no; other statuses say that it broke."""
        return 400 <= self.status < 500 or self.status == 503


class HttpClient:
    """Requests to one server. `url`: http://host:port or https://..., without a path."""

    def __init__(self, url: str, api_key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise SemipdError("invalid_url", f"{url!r} is no server's address.", "Write http://host:port.")
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._is_tls else 80)
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._common = f"Host: {parts.netloc}\r\n{key}Accept: */*\r\nConnection: close\r\n"

    def post_head(self, path: str, body: bytes) -> bytes:
        """A request, ready to be sent."""
        return (
            f"POST {path} HTTP/1.1\r\n{self._common}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def stream(self, request: bytes, sink: EventSink) -> None:
        """Send, and give `sink` every event of the answer. Raises SemipdError: `connect_failed`,
        `connection_lost`, `malformed_response`, HttpStatusError; and what `sink` raises."""
        exchange = await self._exchange(request, sink)
        if exchange.parser.status != 200:
            raise _refusal(exchange.parser.status, bytes(exchange.body))
        if not exchange.is_stream:
            kind = exchange.parser.headers.get("content-type", "missing")
            raise malformed(f"it is {kind}, not text/event-stream")

    async def get_json(self, path: str) -> dict[str, Any]:
        """Raises what `stream` raises, and `server_silent`."""
        request = f"GET {path} HTTP/1.1\r\n{self._common}\r\n".encode()
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                exchange = await self._exchange(request, None)
        except TimeoutError as error:
            message = f"{self._host}:{self._port} did not answer GET {path} within {ANSWER_LIMIT_S:g} s."
            raise SemipdError("server_silent", message) from error
        if exchange.parser.status != 200:
            raise _refusal(exchange.parser.status, bytes(exchange.body))
        try:
            answer: dict[str, Any] = json.loads(exchange.body)
        except ValueError as error:
            raise malformed(f"{path} is not JSON") from error
        return answer

    async def _exchange(self, request: bytes, sink: EventSink | None) -> "_Exchange":
        loop = asyncio.get_running_loop()
        try:
            transport, exchange = await loop.create_connection(
                lambda: _Exchange(request, sink), self._host, self._port, ssl=self._is_tls or None
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise SemipdError(
                "connect_failed", f"Nothing answers at {self._host}:{self._port} ({why})."
            ) from error
        try:
            await exchange.done
        finally:
            transport.abort()
        return exchange


class _Exchange(asyncio.Protocol):
    """One request and its answer. `body` holds what is not an event stream."""

    def __init__(self, request: bytes, sink: EventSink | None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parser = ResponseParser()
        self.body = bytearray()
        self.is_stream = False
        self._request = request
        self._sink = sink
        self._events = EventSplitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as the abstract class they implement
        cast(asyncio.WriteTransport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self.done.done():
            return
        try:
            self._take(self.parser.feed(data), now_s)
        except Exception as error:
            self.done.set_exception(error)
            return
        if self.parser.is_complete:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        try:
            self.parser.end()
        except SemipdError as early:
            early.__cause__ = error
            self.done.set_exception(early)
        else:
            self.done.set_result(None)

    def _take(self, body: bytes, now_s: float) -> None:
        if not body:
            return
        kind = self.parser.headers.get("content-type", "")
        self.is_stream = kind.startswith("text/event-stream") and self.parser.status == 200
        if self.is_stream and self._sink is not None:
            for event in self._events.feed(body):
                self._sink(event, now_s)
            return
        self.body += body
        if len(self.body) > MAX_PLAIN_BODY_BYTES:
            raise malformed(f"its body is longer than {MAX_PLAIN_BODY_BYTES} bytes")


def _refusal(status: int, body: bytes) -> HttpStatusError:
    """OpenAI's error object, FastAPI's `detail`, or just the status."""
    try:
        document = json.loads(body)
        error = document.get("error", document.get("detail"))
    except (ValueError, AttributeError):
        error = body[:200].decode(errors="replace")
    if isinstance(error, dict):
        return HttpStatusError(status, str(error.get("code") or f"http_{status}"), str(error.get("message")))
    return HttpStatusError(status, f"http_{status}", str(error))
