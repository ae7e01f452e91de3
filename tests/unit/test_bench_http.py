"""The load generator's HTTP client: bytes in any portions, servers of several habits, bad ends."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from benchlib.load.http_client import HttpClient, HttpStatusError
from benchlib.load.http_parser import EventSplitter, ResponseParser
from benchlib.load.records import Record
from benchlib.load.targets import HttpTarget, RefusedError
from hypothesis import given
from hypothesis import strategies as st

from semipd.core.errors import SemipdError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def chunked(pieces: list[bytes]) -> bytes:
    chunks = [b"%x;note=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\nTrailer: x\r\n\r\n"


def cut_up(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 30)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 2**32))
def test_a_chunked_body_in_any_portions(pieces: list[bytes], seed: int) -> None:
    parser = ResponseParser()
    body = b"".join(map(parser.feed, cut_up(chunked(pieces), seed)))
    assert body == b"".join(pieces)
    assert parser.is_complete
    assert parser.headers["content-type"] == "text/event-stream"


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_a_body_of_known_length_in_any_portions(content: bytes, seed: int) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    parser = ResponseParser()
    data = interim + HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    assert b"".join(map(parser.feed, cut_up(data, seed))) == content
    assert parser.is_complete


def test_a_body_that_ends_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.feed(HEAD + b"\r\nabc") + parser.feed(b"def") == b"abcdef"
    assert not parser.is_complete
    parser.end()
    assert parser.is_complete


@pytest.mark.parametrize(
    "data", [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\nabc", chunked([b"abc"])[:-20], chunked([])[:-16]]
)
def test_a_connection_that_ends_too_early(data: bytes) -> None:
    parser = ResponseParser()
    parser.feed(data)
    with pytest.raises(SemipdError, match="before its answer ended"):
        parser.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        HEAD + b"X: " + b"y" * 70_000,
    ],
)
def test_what_is_not_http(data: bytes) -> None:
    with pytest.raises(SemipdError) as caught:
        ResponseParser().feed(data)
    assert caught.value.code == "malformed_response"


@given(
    st.lists(st.lists(st.text("ab :", max_size=5), min_size=1, max_size=3), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(0, 2**32),
)
def test_events_in_any_portions(events: list[list[str]], newline: str, seed: int) -> None:
    lines = [line for event in events for line in [": comment", *(f"data: {data}" for data in event), ""]]
    stream = "".join(line + newline for line in lines).encode()
    splitter = EventSplitter()
    found = [event for portion in cut_up(stream, seed) for event in splitter.feed(portion)]
    assert found == ["\n".join(event).encode() for event in events]


@asynccontextmanager
async def server(answer: bytes, *, stays: bool = False) -> AsyncIterator[tuple[str, asyncio.Queue[bytes]]]:
    """Sends `answer` to whoever asks and closes; if it `stays`, it waits for the client to go. The queue
    gets each request, and b"" when such a client has gone."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if stays:
            with suppress(ConnectionError):
                await reader.read()
            seen.put_nowait(b"")
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", seen


def events(*bodies: object, done: bool = True) -> bytes:
    data = [json.dumps(body) for body in bodies] + ["[DONE]"] * done
    return chunked([f"data: {text}\n\n".encode() for text in data])


def choice(text: str, finish_reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"text": text, "finish_reason": finish_reason}], "usage": None}


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


async def send(answer: bytes) -> Record:
    record = Record(0, 7, 3)
    async with server(answer) as (url, _seen):
        await HttpTarget(url, {}, "m").prepare([1, 2], 3).send(record, time.perf_counter())
    record.close("ok", 0.0)
    return record


@pytest.mark.parametrize(
    ("bodies", "done", "num_events"),
    [
        ((choice("a"), choice("b"), choice("c", "length"), {"choices": [], "usage": USAGE}), True, 3),
        # the finish reason and the usage in an event of their own, and no [DONE]
        ((choice("a"), choice("b"), choice("c"), choice("", "length") | {"usage": USAGE}), False, 3),
        # tokens without text
        ((choice(""), choice("b"), choice("", "length"), {"choices": [], "usage": USAGE}), True, 2),
        ((choice("", "length"), {"usage": USAGE}), True, 1),
    ],
)
async def test_streams_of_several_habits(bodies: tuple[object, ...], done: bool, num_events: int) -> None:
    record = await send(events(*bodies, done=done))
    assert len(record.event_times_s) == num_events
    assert record.event_times_s == sorted(record.event_times_s)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (7, 3, 2)


async def test_without_usage() -> None:
    record = await send(events(choice("a"), choice("b", "stop")))
    assert not record.has_usage
    assert record.output_tokens == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (events(choice("a"), {"error": {"code": "engine_crashed", "message": "x"}}), "engine_crashed"),
        (events(choice("a"), {"error": "out of memory"}, done=False), "stream_error"),
        (events(choice("a"), done=False), "stream_truncated"),
        (events(choice("a"))[:-30], "connection_lost"),
        (b"", "connection_lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "malformed_response"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "http_500"),
    ],
)
async def test_bad_ends(answer: bytes, code: str) -> None:
    with pytest.raises(SemipdError) as caught:
        await send(answer)
    assert caught.value.code == code
    assert not isinstance(caught.value, RefusedError)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (503, '{"error": {"code": "overloaded", "message": "later"}}', "overloaded"),
        (422, '{"detail": "Unexpected fields"}', "http_422"),
        (404, "not found", "http_404"),
        (400, '{"error": {"message": "no code"}}', "http_400"),
    ],
)
async def test_refusals(status: int, body: str, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        await send(f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    assert caught.value.code == code


async def test_an_event_that_is_not_json() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        await send(chunked([b"data: {\n\n"]))


async def test_what_is_sent() -> None:
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (url, seen):
        assert await HttpClient(url, api_key="k").get_json("/v1/models") == {}
    head = seen.get_nowait().decode()
    assert head.startswith("GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "Authorization: Bearer k\r\n" in head


async def test_nobody_there() -> None:
    async with server(b"") as (url, _seen):
        pass
    with pytest.raises(SemipdError, match="Nothing answers") as caught:
        await HttpClient(url).get_json("/")
    assert caught.value.code == "connect_failed"


async def test_cancelling_closes_the_connection() -> None:
    async with server(HEAD + b"\r\ndata: x\n\n", stays=True) as (url, seen):
        task = asyncio.create_task(HttpClient(url).get_json("/"))
        assert await seen.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await seen.get() == b""


async def test_plain_statuses() -> None:
    async with server(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n") as (url, _seen):
        with pytest.raises(HttpStatusError) as caught:
            await HttpClient(url).get_json("/nothing")
    assert caught.value.status == 404


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://", "http://host/v1"])
def test_wrong_urls(url: str) -> None:
    with pytest.raises(SemipdError) as caught:
        HttpClient(url)
    assert caught.value.code == "invalid_url"
