"""One HTTP exchange over a connection of its own, which may read slowly and hang up without a word."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from benchlib.load.http_parser import ResponseParser

READ_BYTES = 2**16
SLOW_READ_BYTES = 512
SLOW_BUFFER_BYTES = 4096
SLOW_FOR_S = 4.0
CONNECT_LIMIT_S = 30.0


class HttpExchange:
    """Usage: `open`, read `body`, `hang_up` in any case. Raises OSError and SemipdError (`connection_lost`,
    `malformed_response`).

    A slow one becomes quick after `SLOW_FOR_S`: by then either every buffer from here to the engine is full,
    or there was not enough to fill them.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
        self._reader = reader
        self._writer = writer
        self._pause_s = pause_s
        self._quick_from_s = time.monotonic() + SLOW_FOR_S
        self.parser = ResponseParser()

    @classmethod
    async def open(
        cls, url: str, method: str, path: str, body: Any = None, request_id: str = "", pause_s: float = 0.0
    ) -> "HttpExchange":
        """Connect and send. With `pause_s` little is read at a time, and the kernel keeps little."""
        parts = urlsplit(url)
        reader, writer = await connect(str(parts.hostname), parts.port or 80, is_slow=pause_s > 0)
        data = b"" if body is None else json.dumps(body).encode()
        head = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        head += [f"X-Request-ID: {request_id}"] if request_id else []
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        return cls(reader, writer, pause_s)

    async def body(self) -> AsyncIterator[bytes]:
        """Pieces of the body until it is complete; `parser` knows status and headers by then."""
        while not self.parser.is_complete:
            is_slow = self._pause_s > 0 and time.monotonic() < self._quick_from_s
            data = await self._reader.read(SLOW_READ_BYTES if is_slow else READ_BYTES)
            if not data:
                self.parser.end()
                return
            if piece := self.parser.feed(data):
                yield piece
            if is_slow:
                await asyncio.sleep(self._pause_s)

    async def json(self) -> tuple[int, Any]:
        """Status and document."""
        whole = b"".join([piece async for piece in self.body()])
        return self.parser.status, json.loads(whole) if whole else None

    def hang_up(self) -> None:
        """The other side gets a reset if it is still sending."""
        self._writer.transport.abort()


async def connect(
    host: str, port: int, *, is_slow: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if is_slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await loop.sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock, limit=SLOW_READ_BYTES if is_slow else READ_BYTES)


async def ask(url: str, method: str, path: str) -> tuple[int, Any]:
    """A small question. Raises as HttpExchange."""
    exchange = await HttpExchange.open(url, method, path)
    try:
        return await exchange.json()
    finally:
        exchange.hang_up()


async def cancel(url: str, request_id: str) -> None:
    """Have a request ended by its id. Whoever sent it sees what comes of it."""
    with suppress(OSError, ValueError):
        await ask(url, "DELETE", f"/v1/requests/{request_id}")
