"""Unix sockets at which no good daemon listens, and paths at which there is no socket at all."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from semipd.wire.client_protocol import hello
from semipd.wire.frames import HEADER, FrameReader, encode_frame

_READ_BYTES = 2**16
_GREETING = encode_frame(hello("fuzz"))

Answer = Callable[[socket.socket], None]


def _says(data: bytes) -> Answer:
    """Sends that, and then nothing, until the other side has gone."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(data)
        while peer.recv(_READ_BYTES):
            pass

    return answer


def _trickle(peer: socket.socket) -> None:
    for byte in _GREETING:
        peer.sendall(bytes([byte]))
        time.sleep(0.02)
    peer.recv(_READ_BYTES)


def _echo(peer: socket.socket) -> None:
    while data := peer.recv(_READ_BYTES):
        peer.sendall(data)


def _answering(fields: Mapping[str, object]) -> Answer:
    """A hello, and to each request these fields."""

    def answer(peer: socket.socket) -> None:
        peer.sendall(_GREETING)
        frames = FrameReader()
        while data := peer.recv(_READ_BYTES):
            for request in frames.feed(data):
                if "id" in request:
                    peer.sendall(encode_frame({"id": request["id"], **fields}))

    return answer


_HOSTS: dict[str, Answer] = {
    "silent": _says(b""),
    "closing": lambda peer: None,
    "greeting and silent": _says(_GREETING),
    "greeting and closing": lambda peer: peer.sendall(_GREETING),
    "other version": _says(encode_frame(hello("fuzz") | {"protocol": 99})),
    "no hello": _says(encode_frame({"op": "bye"})),
    "an error of no form": _says(encode_frame({"error": 5})),
    "an error of half a form": _says(encode_frame({"error": {"code": ["x"], "message": "\x1b[2J"}})),
    "garbage": _says(os.urandom(300)),
    "http": _says(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "huge frame": _says(HEADER.pack(2**32 - 1)),
    "half a frame": _says(_GREETING[:7]),
    "trickle": _trickle,
    "echo": _echo,
    "empty answers": _answering({}),
    "answers of another kind": _answering(
        {
            "status": 7,
            "state": [],
            "text": 3,
            "token_ids": None,
            "partition": "x",
            "slo": [],
            "drain": {"state": 5},
        }
    ),
    "half answers": _answering(
        {"status": {"state": "ready"}, "state": {"state": "ready"}, "partition": {"mode": "auto"}}
    ),
    "errors of no form": _answering({"error": "no"}),
}


@contextmanager
def bad_places(folder: Path) -> Iterator[dict[str, str]]:
    """Paths for --socket by what is there; served while the context lasts."""
    with ExitStack() as stack:
        places = {
            name: stack.enter_context(_served(folder / f"{idx}.sock", answer))
            for idx, (name, answer) in enumerate(_HOSTS.items())
        }
        (folder / "file").write_text("no socket")
        os.mkfifo(folder / "fifo")
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(folder / "left-over"))
        (folder / "loop").symlink_to("loop")
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(str(folder / "datagrams"))
        full = stack.enter_context(socket.socket(socket.AF_UNIX))
        full.bind(str(folder / "full"))
        full.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(folder / "full"))
        names = ("file", "fifo", "left-over", "loop", "datagrams", "full", "missing", "file/below")
        places |= {name: str(folder / name) for name in names}
        yield places | {
            "folder": str(folder),
            "too long": str(folder) + "/x" * 100,
            "no text": str(folder) + "/\udcff",
            "root": "/",
            "above": "..",
            "nothing": "",
        }


@contextmanager
def _served(path: Path, answer: Answer) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        threading.Thread(target=_accept, args=(listener, answer), daemon=True).start()
        yield str(path)


def _accept(listener: socket.socket, answer: Answer) -> None:
    with suppress(OSError):
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=_talk, args=(peer, answer), daemon=True).start()


def _talk(peer: socket.socket, answer: Answer) -> None:
    with suppress(OSError), peer:
        answer(peer)
