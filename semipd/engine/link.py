"""The engine's end of the socketpair to the daemon: non-blocking, frames in and frames out."""

import socket
import time
from typing import Any

from semipd.core.errors import ProtocolError
from semipd.wire.engine_link import LINK_FRAME_BYTES
from semipd.wire.frames import FrameReader, encode_frame

RECEIVE_BYTES = 2**20


class Link:
    """`closed` is set when the daemon has gone. What cannot be written at once waits in order."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(LINK_FRAME_BYTES)
        self._unsent = bytearray()
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> list[dict[str, Any]]:
        """Every message that has arrived; never blocks."""
        messages: list[dict[str, Any]] = []
        while not self.closed:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.closed = not data
            messages += self._reader.feed(data)
        return messages

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self._unsent += encode_frame(message)
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now."""
        while self._unsent and not self.closed:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            except ConnectionError:
                self.closed = True
                return
            del self._unsent[:sent]

    def send_blocking(self, message: dict[str, Any], timeout_s: float) -> None:
        """For start-up and the last word: wait until it is written, the peer is gone, or time is up."""
        self.send(message)
        deadline = time.monotonic() + timeout_s
        while self._unsent and not self.closed and time.monotonic() < deadline:
            time.sleep(0.001)
            self.flush()

    def receive_first(self, timeout_s: float) -> dict[str, Any]:
        """The first frame, waited for. Raises ProtocolError when none comes."""
        self._sock.settimeout(timeout_s)
        try:
            while not self.closed:
                data = self._sock.recv(RECEIVE_BYTES)
                self.closed = not data
                messages = self._reader.feed(data)
                if messages:
                    return messages[0]
        except TimeoutError:
            pass
        finally:
            self._sock.setblocking(False)
        raise ProtocolError("no_settings", f"The daemon sent no settings within {timeout_s:g} s.")
