"""What nobody should send: bytes for the Unix socket and for HTTP, and how the daemon took them."""

import asyncio
import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from chaoslib.clock import MachineClock
from chaoslib.http import connect
from semipd.wire.client_protocol import hello
from semipd.wire.frames import encode_frame

ANSWER_LIMIT_S = 30.0
_READ_BYTES = 2**16


def _post(body: bytes, extra: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body


def _frame(body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(body) if length is None else length) + body


def _socket_garbage(rng: random.Random) -> bytes:
    """Before or after a proper hello."""
    greeting = encode_frame(hello("chaos")) if rng.random() < 0.6 else b""
    makers: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randint(1, 400)),
        lambda: _frame(rng.randbytes(rng.randint(1, 400))),
        lambda: _frame(b"\x81\xa2id", 2**31),
        lambda: _frame(b"\xdd\xff\xff\xff\xff"),
        lambda: _frame(b"\xc0"),
        lambda: encode_frame({"id": 1, "op": "generate", "prompt": [rng.randrange(10**12)]}),
        lambda: encode_frame({"id": 2, "op": "no such operation"}),
        lambda: encode_frame({"id": [3], "op": "status"}),
        lambda: encode_frame({"op": "hello", "protocol": 10**6, "agent": "chaos"}),
        lambda: encode_frame({"id": 4, "op": "generate", "prompt": {"a": [None] * 50}, "max_tokens": -1}),
    ]
    return greeting + rng.choice(makers)()


def _http_garbage(rng: random.Random) -> bytes:
    makers: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randint(1, 400)) + b"\r\n\r\n",
        lambda: b"GET / HTTP/9.9\r\n\r\n",
        lambda: _post(b"{"),
        lambda: _post(b"[" * 5000),
        lambda: _post(rng.randbytes(200)),
        lambda: _post(b'{"prompt": {"a": 1}, "max_tokens": "many"}'),
        lambda: _post(b'{"prompt": [1e400], "temperature": NaN}'),
        lambda: _post(b"{}", length=-5),
        lambda: _post(b'{"prompt": "x"}', extra="Transfer-Encoding: chunked\r\n"),
        lambda: _post(b'{"prompt": "x"}', extra="X-Long: " + "y" * 40_000 + "\r\n"),
        lambda: _post(b'{"prompt": "cut', length=10_000),
        lambda: b"POST /v1/completions HTTP/1.1\r\nHost: local",
    ]
    return rng.choice(makers)()


async def throw(
    rng: random.Random, url: str, socket_path: Path, counts: Counter[str], clock: MachineClock
) -> None:
    """One piece of garbage. Counts `answered`, `closed`, `server error` or `no answer`."""
    over_http = rng.random() < 0.5
    data = _http_garbage(rng) if over_http else _socket_garbage(rng)
    try:
        answer = await clock.within(ANSWER_LIMIT_S, _answer(url if over_http else "", socket_path, data))
    except TimeoutError:
        counts["no answer"] += 1
        return
    except OSError:
        answer = b""
    if b'"internal_error"' in answer or b"Traceback" in answer:
        counts["server error"] += 1
    else:
        counts["answered" if answer else "closed"] += 1


async def _answer(url: str, socket_path: Path, data: bytes) -> bytes:
    """All that comes until the other side closes, or has said what it has to say. Our half is closed, so that
    a request that was cut short is known to be one. Raises OSError."""
    if url:
        parts = urlsplit(url)
        reader, writer = await connect(str(parts.hostname), parts.port or 80)
    else:
        reader, writer = await asyncio.open_unix_connection(os.fspath(socket_path))
    try:
        writer.write(data)
        with suppress(OSError):
            writer.write_eof()
        said = b""
        while piece := await reader.read(_READ_BYTES):
            said += piece
            if url and b"\r\n\r\n" in said:
                break
        return said
    finally:
        writer.transport.abort()
