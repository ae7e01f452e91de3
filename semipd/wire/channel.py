"""A non-blocking framed socket that can be waited for with a single file descriptor."""

import select
import socket
import time
from typing import Any

from semipd.system.readiness import writable
from semipd.wire.frames import FrameReader, encode_frame

_READ_BYTES = 2**18


class Channel:
    """Frames out and in, never blocking.

    What the socket does not take at once waits in a buffer. `fileno()` is an epoll descriptor: readable when
    frames may have arrived, when the peer is gone, and when buffered output can move on. Whoever waits on
    it calls `receive`, which does all of that.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(max_frame_bytes)
        self._unsent = memoryview(b"")
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        self.peer_gone = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Make `fileno()` readable also when `fd` is."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def send(self, *messages: dict[str, Any]) -> None:
        """Queue frames and send what the socket takes. A lost peer shows in `peer_gone`, not here."""
        frame = b"".join(map(encode_frame, messages))
        self._unsent = memoryview(bytes(self._unsent) + frame if self._unsent else frame)
        self._flush()

    def receive(self) -> list[dict[str, Any]]:
        """Every frame that has arrived. Raises ProtocolError."""
        if self._unsent:
            self._flush()
        messages: list[dict[str, Any]] = []
        while not self.peer_gone:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.peer_gone = not data
            messages += self._reader.feed(data)
        return messages

    def receive_within(self, limit_s: float) -> list[dict[str, Any]]:
        """The next frames, waited for; none when the time is up or the peer is gone."""
        deadline_s = time.monotonic() + limit_s
        messages = self.receive()
        while not messages and not self.peer_gone and (left_s := deadline_s - time.monotonic()) > 0:
            self._epoll.poll(left_s)
            messages = self.receive()
        return messages

    def flush_within(self, limit_s: float) -> None:
        """Wait until everything is sent, for the last words of a process that is about to end."""
        deadline_s = time.monotonic() + limit_s
        while self._unsent and (left_s := deadline_s - time.monotonic()) > 0:
            writable(self._sock.fileno(), left_s)
            self._flush()

    def close(self) -> None:
        """Idempotent. The peer reads end-of-file."""
        self._epoll.close()
        self._sock.close()

    def _flush(self) -> None:
        was_waiting = bool(self._unsent)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            # What the peer said before it went can still be read.
            self._unsent = memoryview(b"")
        if was_waiting:
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
            self._epoll.modify(self._sock, wanted)
