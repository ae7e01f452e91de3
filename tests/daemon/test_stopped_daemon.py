"""A daemon that was stopped for a while does not wake up to accuse its clients."""

import asyncio
import signal
from pathlib import Path
from urllib.parse import urlsplit

from chaoslib.models import save_weightless
from chaoslib.target import Target

BODY = b'{"prompt": [1, 2, 3], "max_tokens": 2}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
REQUEST = HEAD + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
LIMITS: dict[str, object] = {"limits.head_limit_s": 1.0, "limits.body_limit_s": 1.0}


async def test_requests_that_came_while_it_was_stopped_are_answered(tmp_path: Path) -> None:
    """Before that a connection had nothing said, or a head, or half a body."""
    target = Target(tmp_path, save_weightless(tmp_path / "model"), "fake", LIMITS)
    try:
        await target.started()
        parts = urlsplit(target.url)
        cuts = (0, len(HEAD), len(REQUEST) - 9)
        clients = [await asyncio.open_connection(parts.hostname, parts.port) for _ in cuts]
        for (_, writer), cut in zip(clients, cuts, strict=True):
            writer.write(REQUEST[:cut])
        await asyncio.sleep(0.3)
        target.send_signal(target.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        for (_, writer), cut in zip(clients, cuts, strict=True):
            writer.write(REQUEST[cut:])
        await asyncio.sleep(0.2)
        target.send_signal(target.pid, signal.SIGCONT)
        for reader, writer in clients:
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()
    finally:
        target.send_signal(target.pid, signal.SIGCONT)
        await target.stopped()
