"""HTTP as bytes, for what no client library sends."""

import asyncio
import json
from typing import Any, NamedTuple

from support.daemon import Running

LIMIT_S = 30


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any
    interim: bytes
    """Everything before the answer's head."""

    @property
    def code(self) -> str:
        code: str = self.body["error"]["code"]
        return code


async def send(daemon: Running, head: str, body: bytes = b"", *, waits: bool = False) -> Answer:
    """One request on a connection of its own; its lines end with a line feed in `head`. With `waits`, the
    body is sent when it is asked for, if it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(daemon.url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(LIMIT_S):
            writer.write(head.strip().replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n")
            if not waits:
                writer.write(body)
            first = await reader.readuntil(b"\r\n\r\n")
            interim = b""
            if first.startswith(b"HTTP/1.1 100"):
                interim = first
                writer.write(body)
                first = await reader.readuntil(b"\r\n\r\n")
            return await _answer(first, reader, interim)
    finally:
        writer.close()


async def _answer(head: bytes, reader: asyncio.StreamReader, interim: bytes) -> Answer:
    status, *lines = head.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    text = await reader.readexactly(int(headers.get("content-length", 0)))
    is_json = headers.get("content-type", "").startswith("application/json")
    return Answer(int(status.split()[1]), headers, json.loads(text) if is_json else text, interim)
