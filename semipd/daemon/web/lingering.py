"""Closing a connection so that its last answer arrives.

A socket that is closed while the client still sends answers with a reset, and the client's system then drops
what was sent to it. So we end our half first, and read and discard, within bounds, until the client ends its
own.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from semipd.daemon.host.process_limits import MAX_LINGERING

LINGER_S = 10.0
"""For a client to end its half, once it has been sent everything."""

LINGER_BYTES = 64 * 2**20
"""Read and discarded of one connection; for HTTP at least server.max_body_bytes."""

MAX_STUCK_LOOKS = 6
"""A client that takes nothing of what is left to send for so many LINGER_S is cut off."""


class Lingering:
    """The connections of one server that are being closed, at most `max_open`; more are closed at once.
    `max_bytes`: discarded of each."""

    def __init__(self, max_bytes: int = LINGER_BYTES, max_open: int = MAX_LINGERING) -> None:
        self._max_bytes = max(max_bytes, LINGER_BYTES)
        self._max_open = max_open
        self._open: set[asyncio.Transport] = set()
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self._open) >= self._max_open

    def close(self, transport: asyncio.Transport) -> bool:
        """End our half now, the other within the bounds. Returns whether the transport's protocol has been
        replaced, and so will not learn of the end; False: it is closed at once."""
        if transport.is_closing() or self.is_full:
            transport.close()
            return False
        transport.set_protocol(_Discard(transport, self._max_bytes, self.forget))
        self._open.add(transport)
        with suppress(OSError):  # the client has gone: the transport learns it as it reads
            transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()
        return True

    def forget(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self._changed.set()

    async def close_all(self, limit_s: float) -> None:
        """Wait for clients to end their half; those that have not within the limit are closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._open:
                    self._changed.clear()
                    await self._changed.wait()
        for transport in self._open:
            transport.close()


class _Discard(asyncio.Protocol):
    """Reads without keeping anything, until the client ends its half: the transport then closes itself."""

    def __init__(
        self, transport: asyncio.Transport, max_bytes: int, forget: Callable[[asyncio.Transport], None]
    ) -> None:
        self._transport = transport
        self._left_bytes = max_bytes
        self._forget = forget
        self._unsent_bytes = transport.get_write_buffer_size()
        self._stuck_looks = 0
        self._timer = self._look_later()

    def data_received(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        self._forget(self._transport)

    def _look_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(LINGER_S, self._look)

    def _look(self) -> None:
        unsent_bytes = self._transport.get_write_buffer_size()
        if not unsent_bytes:
            self._transport.close()
            return
        self._stuck_looks = self._stuck_looks + 1 if unsent_bytes == self._unsent_bytes else 0
        self._unsent_bytes = unsent_bytes
        if self._stuck_looks >= MAX_STUCK_LOOKS:
            self._transport.abort()
        self._timer = self._look_later()


class LingeringTransport:
    """Stands before a transport, for a protocol that closes it when its last answer has been written."""

    def __init__(
        self, transport: asyncio.Transport, lingering: Lingering, protocol: asyncio.Protocol
    ) -> None:
        self._transport = transport
        self._lingering = lingering
        self._protocol = protocol
        self.write = transport.write
        self.is_closing = transport.is_closing
        self._has_closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """For the protocol the connection is lost now."""
        if not self._has_closed:
            self._has_closed = True
            if self._lingering.close(self._transport):
                asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def close_at_once(self) -> None:
        """For a connection that no answer is owed to."""
        if not self._has_closed:
            self._has_closed = True
            self._transport.close()
