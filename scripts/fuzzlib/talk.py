"""Sends one case and judges the answer: never a 500, never silence, never a traceback."""

import json
import select
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchlib.load.http_parser import ResponseParser

from semipd.core.errors import SemipdError
from semipd.wire.client_protocol import hello
from semipd.wire.frames import FrameReader, encode_frame

ANSWER_LIMIT_S = 60.0
"""A hang is silence for so long; a busy machine is not."""

PATIENCE_S = 0.1
"""For bytes that may be a whole request or not: only then the daemon is told that no more will come."""

READ_BYTES = 2**16
_MARK = "Traceback (most recent call last)"


class ViolationError(AssertionError):
    """The daemon did what it must never do."""


class HttpTalker:
    """Keeps its connection as long as the daemon does. `tally`: answers by status, and closings."""

    def __init__(self, url: str, tally: Counter[str]) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._tally = tally
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, body: bytes) -> int:
        """The status of a request that is good HTTP. Raises ViolationError."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        status = self._exchange(data, may_close=False)
        if status == 0:  # an idle connection may have been closed when we wrote
            status = self._exchange(data, may_close=False)
        if status == 0:
            raise ViolationError(f"{method} {path} was not answered")
        return status

    def send_raw(self, data: bytes) -> None:
        """Any bytes: an answer, or the end of the connection. Raises ViolationError."""
        self.close()
        self._exchange(data, may_close=True)
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, data: bytes, *, may_close: bool) -> int:
        """0: closed without an answer."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=ANSWER_LIMIT_S)
        try:
            self._socket.sendall(data)
            if may_close and not select.select([self._socket], [], [], PATIENCE_S)[0]:
                self._socket.shutdown(socket.SHUT_WR)  # it waits for more, which does not come
            status = self._answer(is_head=data.startswith(b"HEAD "), may_close=may_close)
        except (ConnectionError, BrokenPipeError):
            status = 0
        except TimeoutError as error:
            raise ViolationError(f"no answer within {ANSWER_LIMIT_S:g} s") from error
        self._tally[str(status) if status else "closed"] += 1
        if status == 0:
            self.close()
        return status

    def _answer(self, *, is_head: bool, may_close: bool) -> int:
        assert self._socket is not None
        parser, body = ResponseParser(), b""
        while not parser.is_complete and not (is_head and parser.status):
            data = self._socket.recv(READ_BYTES)
            if not data:
                if not parser.status:
                    return 0
                parser.end()
                break
            body += parser.feed(data)
            if may_close and parser.headers.get("content-type", "").startswith("text/event-stream"):
                break  # events go on for ever
        if parser.headers.get("connection", "").lower() == "close":
            self.close()
        _judge(parser, body, is_head=is_head)
        return parser.status


def _judge(parser: ResponseParser, body: bytes, *, is_head: bool) -> None:
    if parser.status == 500 or _MARK.encode() in body or b'"internal_error"' in body:
        raise ViolationError(f"status {parser.status}: {body[:500]!r}")
    if parser.status < 400 or is_head:
        return
    try:
        error = json.loads(body)["error"]
        is_ours = isinstance(error["code"], str) and isinstance(error["message"], str)
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ViolationError(f"status {parser.status} with a body that is no error of ours: {body[:500]!r}")


class SocketTalker:
    """A new connection for each case."""

    def __init__(self, path: Path, tally: Counter[str]) -> None:
        self._path = path
        self._tally = tally

    def ask(self, requests: list[dict[str, Any]]) -> None:
        """Good frames: each is answered. Raises ViolationError."""
        with self._connected() as connection:
            connection.sendall(b"".join(map(encode_frame, [hello("fuzz"), *requests])))
            reader, open_ids = FrameReader(), Counter[object](request["id"] for request in requests)
            deadline_s = time.monotonic() + ANSWER_LIMIT_S
            while open_ids:
                for frame in self._read(connection, reader, deadline_s):
                    if frame.get("op") != "hello" and self._is_last(frame):
                        open_ids -= Counter([frame["id"]])
            self._tally["answered"] += len(requests)

    def send_raw(self, data: bytes) -> None:
        """Any bytes: an error of the connection, answers, or its end. Raises ViolationError."""
        with self._connected() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                reader, deadline_s = FrameReader(), time.monotonic() + ANSWER_LIMIT_S
                while True:
                    for frame in self._read(connection, reader, deadline_s):
                        self._is_last(frame)
            except (ConnectionError, EOFError):
                self._tally["closed"] += 1

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_LIMIT_S)
        connection.connect(str(self._path))
        return connection

    def _read(
        self, connection: socket.socket, reader: FrameReader, deadline_s: float
    ) -> list[dict[str, Any]]:
        if time.monotonic() > deadline_s:
            raise ViolationError(f"not everything was answered within {ANSWER_LIMIT_S:g} s")
        try:
            data = connection.recv(READ_BYTES)
        except TimeoutError as error:
            raise ViolationError(f"no frame within {ANSWER_LIMIT_S:g} s") from error
        if not data:
            raise EOFError
        return reader.feed(data)

    def _is_last(self, frame: dict[str, Any]) -> bool:
        """Of what answers a request. A subscription counts as answered with its first frame."""
        error = frame.get("error")
        if error is None:
            return "text" not in frame or "usage" in frame
        self._tally[error["code"]] += 1
        if error["code"] == "internal_error" or _MARK in error["message"]:
            raise ViolationError(f"an internal error: {error}")
        return True


def is_ready(url: str) -> bool:
    talker = HttpTalker(url, Counter())
    try:
        return talker.ask("GET", "/ready", b"") == 200
    except (ViolationError, OSError, SemipdError):
        return False
    finally:
        talker.close()
