"""Bodies that are large for what they are: deep, wide, long. While one is answered, others are too."""

import json
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fuzzlib.talk import HttpTalker, SocketTalker, ViolationError
from semipd.wire.client_protocol import hello
from semipd.wire.frames import HEADER, MAX_FRAME_BYTES, encode_frame

MAX_BYTES = 2**23
"""server.max_body_bytes, unless somebody sets it."""

SILENCE_S = 0.3
"""Longer without an answer from /health is a fault, if it is so each time and not the machine's."""

TRIES = 3
PAUSE_S = 0.004
MACHINE_FACTOR = 10
"""Beside a daemon, our own thread sleeps too long by so much less than the daemon may."""

_HEADS = {
    "/v1/completions": b'"max_tokens":2',
    "/v1/chat/completions": b'"max_tokens":2',
    "/tokenize": b'"x":0',
    "/detokenize": b'"x":0',
    "/v1/partition": b'"x":0',
    "/v1/slo": b'"x":0',
    "/v1/drain": b'"x":0',
}
_METHODS = {"/v1/partition": "PUT", "/v1/slo": "PATCH"}
_FIELDS = (
    "prompt", "messages", "tokens", "stop", "stop_token_ids", "logit_bias", "tools", "metadata", "user",
    "chat_template_kwargs", "model", "cache_salt", "seed", "x",
)  # fmt: skip
_ITEMS = (
    b"[]", b"{}", b"1", b"0.5", b'""', b'"a"', b"null", b"-1", b"[1]", b'{"a":1}', b"[[]]",
    b'{"role":"user","content":""}', b'{"type":"text","text":""}',
    b'{"role":"user","content":[{"type":"text","text":"a"}]}',
)  # fmt: skip
_UNITS = (b"a", b" ", b"word ", b"\\n", b'\\"', b"\\u00e9", b"\\ud83d\\ude00", b",[", "语".encode(), b"ab,")


def _wide(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def _many_keys(item: bytes, count: int) -> bytes:
    return b"{" + b",".join(b'"%d":%s' % (idx, item) for idx in range(count)) + b"}"


def _deep(item: bytes, count: int) -> bytes:
    return b"[" * count + item + b"]" * count


def _deep_maps(item: bytes, count: int) -> bytes:
    return b'{"a":' * count + item + b"}" * count


def _text(item: bytes, count: int) -> bytes:
    return b'"' + item * count + b'"'


def _message(item: bytes, count: int) -> bytes:
    return b'[{"role":"user","content":' + _text(item, count) + b"}]"


def _parts(item: bytes, count: int) -> bytes:
    return b'[{"role":"user","content":' + _wide(item, count) + b"}]"


def _call(item: bytes, count: int) -> bytes:
    """Arguments are JSON inside JSON."""
    arguments = json.dumps("[" * count + item.decode()).encode()
    call = b'{"type":"function","function":{"name":"f","arguments":' + arguments + b"}}"
    return b'[{"role":"assistant","content":"","tool_calls":[' + call + b"]}]"


def _digits(_item: bytes, count: int) -> bytes:
    return b"9" * count


_OF_ITEMS: tuple[Callable[[bytes, int], bytes], ...] = (_wide, _many_keys, _parts)
_DEEP: tuple[Callable[[bytes, int], bytes], ...] = (_deep, _deep_maps, _call)
_OF_UNITS: tuple[Callable[[bytes, int], bytes], ...] = (_text, _message)


@dataclass(frozen=True)
class Large:
    """`num_bytes`, about, of `item` in the field `name`."""

    path: str
    name: str
    shape: Callable[[bytes, int], bytes]
    item: bytes
    num_bytes: int

    def __repr__(self) -> str:
        shape = self.shape.__name__.strip("_")
        return f"{self.num_bytes} bytes to {self.path}: {self.name} {shape} of {self.item!r}"

    @property
    def body(self) -> bytes:
        value = self.shape(self.item, max(self.num_bytes // (len(self.item) + 1), 1))
        return (b"{" + _HEADS[self.path] + b',"' + self.name.encode() + b'":' + value + b"}")[:MAX_BYTES]


_sizes = st.integers(10, 23).map(lambda exponent: 2**exponent) | st.just(MAX_BYTES)


@st.composite
def large_bodies(draw: st.DrawFn) -> Large:
    path, name = draw(st.sampled_from(sorted(_HEADS))), draw(st.sampled_from(_FIELDS))
    if draw(st.booleans()):
        shape, item = draw(st.sampled_from(_OF_ITEMS)), draw(st.sampled_from(_ITEMS))
    else:
        shape, item = draw(st.sampled_from((*_OF_UNITS, _digits))), draw(st.sampled_from(_UNITS))
    return Large(path, name, shape, item, draw(_sizes))


@st.composite
def deep_bodies(draw: st.DrawFn) -> Large:
    """JSON inside JSON too: the arguments of tool calls."""
    path, name = draw(st.sampled_from(sorted(_HEADS))), draw(st.sampled_from((*_FIELDS, "messages")))
    shape, item = draw(st.sampled_from(_DEEP)), draw(st.sampled_from((b"[]", b"{}", b"1")))
    if shape is _call:
        path, name = draw(st.sampled_from(("/v1/chat/completions", "/tokenize"))), "messages"
    return Large(path, name, shape, item, 2 ** draw(st.integers(1, 18)))


_EMPTY = {"[]": b"\x90", "{}": b"\x80", "1": b"\x01", '""': b"\xa0", "[[]]": b"\x91\x90", "nil": b"\xc0"}


@dataclass(frozen=True)
class LargeFrame:
    """A request with a field of `count` items, or nested `count` deep."""

    name: str
    item: str
    count: int
    is_deep: bool

    @property
    def data(self) -> bytes:
        item = _EMPTY[self.item]
        count = min(self.count, (MAX_FRAME_BYTES - 100) // len(item))
        value = b"\x91" * count + item if self.is_deep else b"\xdd" + struct.pack(">I", count) + item * count
        name = self.name.encode()
        body = b"\x83\xa2id\x01\xa2op\xa8generate" + bytes([0xA0 + len(name)]) + name + value
        return encode_frame(hello("fuzz")) + HEADER.pack(len(body)) + body


large_frames = st.builds(
    LargeFrame,
    st.sampled_from(["prompt", "messages", "stop", "x"]),
    st.sampled_from(sorted(_EMPTY)),
    st.integers(1, 22).map(lambda exponent: 2**exponent),
    st.booleans(),
)


class Bystander:
    """Sends a case while somebody else asks /health. Raises ViolationError when that one waits too long."""

    def __init__(self, url: str, socket_path: Path, http: Counter[str], frames: Counter[str]) -> None:
        self._url = url
        self._talker = HttpTalker(url, http)
        self._socket_talker = SocketTalker(socket_path, frames)

    def ask(self, case: Large) -> None:
        body = case.body
        self.watch(lambda: self._talker.ask(_METHODS.get(case.path, "POST"), case.path, body))
        if case.path == "/v1/drain":
            self._talker.ask("DELETE", "/v1/drain", b"{}")

    def say(self, case: LargeFrame) -> None:
        data = case.data
        self.watch(lambda: self._socket_talker.send_raw(data))

    def close(self) -> None:
        self._talker.close()

    def watch(self, send: Callable[[], object]) -> None:
        """A slow machine has a bad moment; a fault is there again."""
        silences: list[str] = []
        for _ in range(TRIES):
            with health_watched(self._url) as watch:
                send()
            if watch.longest_s <= SILENCE_S + MACHINE_FACTOR * watch.machine_s:
                return
            silences.append(f"{watch.longest_s:.2f} s (the machine {watch.machine_s:.2f})")
        raise ViolationError(f"/health was silent for {', '.join(silences)}")


@dataclass
class _Watch:
    """The longest that /health took, and the longest by which a thread of ours overslept."""

    longest_s: float = 0.0
    machine_s: float = 0.0


@contextmanager
def health_watched(url: str) -> Iterator[_Watch]:
    watch, ended = _Watch(), threading.Event()
    threads = [
        threading.Thread(target=_ask_health, args=(url, watch, ended)),
        threading.Thread(target=_oversleep, args=(watch, ended)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _ask_health(url: str, watch: _Watch, ended: threading.Event) -> None:
    talker = HttpTalker(url, Counter())
    try:
        while not ended.wait(PAUSE_S):
            began_s = time.monotonic()
            talker.ask("GET", "/health", b"")
            watch.longest_s = max(watch.longest_s, time.monotonic() - began_s)
    finally:
        talker.close()


def _oversleep(watch: _Watch, ended: threading.Event) -> None:
    while True:
        began_s = time.monotonic()
        if ended.wait(PAUSE_S):
            return
        watch.machine_s = max(watch.machine_s, time.monotonic() - began_s - PAUSE_S)
