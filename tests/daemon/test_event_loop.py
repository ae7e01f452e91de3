"""While requests are served, the event loop's thread makes no blocking call."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.daemon import Running, running

from semipd.client import AsyncClient
from semipd.daemon.prompts.prompt import INLINE_ENCODE_CHARS

BLOCKING = {"time.sleep", "open", "subprocess.Popen", "socket.getaddrinfo", "os.listdir", "os.scandir"}

_seen: list[str] = []
_watched_thread: int | None = None


def _hook(event: str, args: tuple[object, ...]) -> None:
    """Files of /proc are in memory: the supervisor reads them when the engine is slow to answer."""
    if event in BLOCKING and threading.get_ident() == _watched_thread and "/proc/" not in repr(args[:1]):
        _seen.append(f"{event}{args!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[None]:
    """Audit hooks stay for ever; this one looks only here."""
    global _watched_thread
    _seen.clear()
    _watched_thread = threading.get_ident()
    try:
        yield
    finally:
        _watched_thread = None


def test_the_watch_sees(tmp_path: Path) -> None:
    with watched():
        (tmp_path / "x").write_text("x")
    assert _seen


async def _read(daemon: Running, path: str) -> bytes:
    async with daemon.http.get(daemon.url + path) as response:
        assert response.status == 200
        return await response.read()


async def test_serving_makes_no_blocking_call(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        await daemon.complete(prompt="warm the imports up")
        await _read(daemon, "/metrics")
        with watched():
            await asyncio.gather(
                daemon.stream(prompt=[97, 98], max_tokens=50),
                daemon.complete(prompt="x" * (INLINE_ENCODE_CHARS // 2), max_tokens=3),
                daemon.post({"prompt": None}),
                daemon.engine(),
                client.status(),
                client.requests(),
                anext(client.subscribe()),
                _read(daemon, "/metrics"),
                _read(daemon, "/v1/requests"),
            )
            assert (await anext(client.generate([97], max_tokens=1))).text == "a"
    assert _seen == []


async def test_long_texts_are_tokenized_beside_the_loop(tmp_path: Path) -> None:
    threads: list[int] = []
    async with running(tmp_path) as daemon:
        tokenizer = daemon.services.generation.model.tokenizer
        encode = tokenizer.encode

        def noting(text: str, *, add_special_tokens: bool = True) -> list[int]:
            threads.append(threading.get_ident())
            return encode(text, add_special_tokens=add_special_tokens)

        tokenizer.encode = noting  # type: ignore[method-assign]
        await daemon.complete(prompt="short")
        status, answer, _ = await daemon.post({"prompt": "x" * (INLINE_ENCODE_CHARS + 1)})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert threads[0] == threading.get_ident() != threads[1]
