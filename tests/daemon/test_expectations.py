"""A client that waits for 100 Continue is asked for its body only when the body is wanted."""

from pathlib import Path

from support.daemon import running
from support.keys import ANN, key_settings
from support.loops import on_uvloop
from support.raw_http import send

BODY = b'{"prompt": "a", "max_tokens": 1}'
KEY = f"Authorization: Bearer {ANN}"
TYPE = "Content-Type: application/json"


def head(line: str, *lines: str, length: int = len(BODY), expect: str = "100-continue") -> str:
    return "\n".join([f"{line} HTTP/1.1", *lines, f"Content-Length: {length}", f"Expect: {expect}"])


POST = "POST /v1/completions"
REFUSED = [
    (head(POST, "Host: localhost", TYPE), 401),
    (head(POST, "Host: localhost", TYPE, "Authorization: Bearer wrong-key-0123456789"), 401),
    (head(POST, "Host: evil.example", TYPE, KEY), 403),
    (head(POST, "Host: localhost", "Content-Type: text/plain", KEY), 415),
    (head(POST, "Host: localhost", TYPE, KEY, length=10**9), 413),
    (head("POST /v1/drain", "Host: localhost", TYPE, KEY), 403),
    (head("POST /v1/nothing", "Host: localhost", TYPE, KEY), 404),
    (head("PUT /v1/completions", "Host: localhost", TYPE, KEY), 405),
    (head(POST, "Host: localhost", TYPE, KEY, expect="miracles"), 417),
    (head(POST, "Host: localhost", TYPE, KEY, expect="100-continue\nExpect: more"), 417),
]


@on_uvloop
async def test_who_is_refused_is_not_asked(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        for request, status in REFUSED:
            answer = await send(daemon, request, BODY, waits=True)
            assert (answer.status, answer.interim) == (status, b""), request
        daemon.services.drain.begin("test", "", 60.0)
        answer = await send(daemon, head(POST, "Host: localhost", TYPE, KEY), BODY, waits=True)
        assert (answer.code, answer.interim) == ("draining", b"")


@on_uvloop
async def test_who_is_not_is_asked_once(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        request = head(POST, "Host: localhost", TYPE, KEY, expect="100-Continue")
        answer = await send(daemon, request, BODY, waits=True)
        assert (answer.status, answer.interim) == (200, b"HTTP/1.1 100 Continue\r\n\r\n")
        old = request.replace("HTTP/1.1", "HTTP/1.0")
        answer = await send(daemon, old, BODY)
        assert (answer.status, answer.interim) == (200, b""), "HTTP/1.0 has no such thing"
        answer = await send(daemon, "GET /v1/models HTTP/1.1\nHost: localhost\nExpect: 100-continue\n" + KEY)
        assert (answer.status, answer.interim) == (200, b"")
