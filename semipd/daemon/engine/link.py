"""The daemon's end of the engine's socket: frames, neither reading nor writing ever blocks."""

import asyncio
import socket
from collections import deque
from typing import Any

from semipd.wire.engine_link import LINK_FRAME_BYTES
from semipd.wire.frames import FrameReader, encode_frame

READ_BYTES = 2**17
"""Decoded at once: a few steps with many log-probabilities."""


class Link:
    """Its two directions end separately: an engine that reads nothing more, because it is dead, may have left
    messages. An asyncio stream would drop those when a write fails."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over `sock`. Only where an event loop runs."""
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader(LINK_FRAME_BYTES)
        self._received: deque[dict[str, Any]] = deque()
        self._unsent: deque[memoryview] = deque()
        self._is_deaf = False
        self.unsent_bytes = 0

    def send(self, message: dict[str, Any]) -> None:
        """At once if the socket takes it, else as soon as it does. A lost peer shows in `receive`. Raises
        SemipdError(`cannot_be_sent`); the link goes on without the message."""
        frame = memoryview(encode_frame(message, LINK_FRAME_BYTES))
        if self._is_deaf:
            return
        self._unsent.append(frame)
        self.unsent_bytes += len(frame)
        if len(self._unsent) == 1:
            self._flush()
            if self._unsent:
                self._loop.add_writer(self._sock, self._flush)

    async def receive(self) -> dict[str, Any]:
        """The next frame. Raises EOFError when the engine has closed its end, ProtocolError."""
        while not self._received:
            try:
                data = await self._loop.sock_recv(self._sock, READ_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError
            self._received.extend(self._frames.feed(data))
            # an engine that sends as fast as we read must not keep everybody else from running
            await asyncio.sleep(0)
        return self._received.popleft()

    def close(self) -> None:
        """Idempotent; nobody may be receiving."""
        self._drop_unsent()
        self._is_deaf = True
        self._sock.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                num_sent = self._sock.send(self._unsent[0])
                self.unsent_bytes -= num_sent
                rest = self._unsent[0][num_sent:]
                if rest:
                    self._unsent[0] = rest
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except ConnectionError:
            self._is_deaf = True
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        """Nothing is left to write, or nobody to read it."""
        self._unsent.clear()
        self.unsent_bytes = 0
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)
