"""One connection's frames, both ways, with limits on its peer; and how it is closed."""

import asyncio
import fcntl
import struct
import termios
from collections import deque
from typing import Any

from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.web.streaming import WRITE_LIMIT_S
from semipd.system.readiness import has_hung_up
from semipd.wire.client_protocol import error_frame
from semipd.wire.frames import (
    HEADER,
    MAX_CONTAINER_LEN,
    MAX_FRAME_BYTES,
    FrameReader,
    encode_frame,
)
from semipd.wire.own_time import OwnTime

FRAME_LIMIT_S = 60.0
"""For the rest of a frame that has begun."""

CLOSE_LIMIT_S = 3.0
POLL_S = 0.02
"""How often to look whether a peer has read what it was sent."""

MAX_ARRIVING_BYTES = 256 * 2**20
"""Of frames that have begun, on all connections together; each alone could hold MAX_FRAME_BYTES."""

UNSENT_BYTES = 2**14
"""While no more is unsent, nobody has to wait for a turn to write."""

READ_BYTES = 2**16
_INT = struct.Struct("i")


class Arriving:
    """Bytes of unfinished frames on all connections."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def change(self, before: int, after: int) -> None:
        """One connection holds `after` bytes now. Raises ProtocolError(`overloaded`) beyond the bound."""
        self.num_bytes += after - before
        if self.num_bytes > MAX_ARRIVING_BYTES and after > READ_BYTES:
            message = (
                f"Unfinished frames hold {self.num_bytes} bytes; the limit is {MAX_ARRIVING_BYTES}, "
                f"of all connections together."
            )
            hint = "Connect and send the request again later."
            raise ProtocolError("overloaded", message, hint, retry_after_s=1)


class FrameStream:
    """Raises ConnectionError where the peer has gone."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        arriving: Arriving | None = None,
        max_values: int | None = None,
    ) -> None:
        """`max_values`: what a frame of the peer may hold, see FrameReader."""
        self.writer = writer
        self._reader = reader
        self._arriving = arriving or Arriving()
        self._frames = FrameReader(max_values=max_values)
        self._received: deque[bytes] = deque()
        self._has_ended = False
        self._writing = asyncio.Lock()

    @property
    def pending_bytes(self) -> int:
        """Of a frame that has begun."""
        return self._frames.pending_bytes

    @property
    def has_more(self) -> bool:
        """The next frame is here."""
        return bool(self._received)

    @property
    def has_hung_up(self) -> bool:
        """The peer has not only ended its half: nobody will read us."""
        return self.writer.transport.is_closing() or has_hung_up(
            self.writer.get_extra_info("socket").fileno()
        )

    async def receive(self) -> dict[str, Any] | None:
        """The next frame; None when the peer has closed its end. Raises ProtocolError, MalformedBodyError if
        the next but one can be read."""
        if not self._received and not self.pending_bytes:
            await self._read()
        if not self._received and not self._has_ended:
            await self._read_rest()
        if self._received:
            return self._frames.decode(self._received.popleft())
        if self.pending_bytes:
            message = f"The connection ended {self.pending_bytes} bytes into a frame."
            raise ProtocolError("malformed_frame", message, "Send whole frames.")
        return None

    async def say(self, message: dict[str, Any]) -> None:
        """One after the other: while the peer reads nothing, at most one message is added to what the
        transport holds, however many want to write. Raises SemipdError(`answer_too_large`), and
        ProtocolError(`slow_reader`)."""
        transport = self.writer.transport
        if self._writing.locked() or transport.get_write_buffer_size() > UNSENT_BYTES:
            await self._say_in_turn(message)
        elif transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        else:
            self.writer.write(answer_frame(message))

    async def flushed(self) -> None:
        """A peer that has ended its half only may still read the rest, at its pace."""
        left_bytes = self.writer.transport.get_write_buffer_size()
        async with OwnTime(WRITE_LIMIT_S):
            while left_bytes and not self.has_hung_up:
                await asyncio.sleep(POLL_S)
                left_bytes = self.writer.transport.get_write_buffer_size()

    async def close(self, why: SemipdError | None = None, limit_s: float = CLOSE_LIMIT_S) -> None:
        """Nobody may be receiving. With a reason to give, wait for the peer to end its half: one that still
        writes to a closed connection would find an error, and might never look for our words."""
        try:
            async with asyncio.timeout(limit_s):
                if why is not None and not self.writer.transport.is_closing():
                    self.writer.write(encode_frame(error_frame(None, why, closing=True)))
                    self.writer.write_eof()
                    await self._ended()
                self.writer.close()
                await self.writer.wait_closed()
        except OSError:
            pass  # it has gone, or has read nothing
        finally:
            self.writer.transport.abort()

    async def _read(self) -> None:
        before = self.pending_bytes
        data = await self._reader.read(READ_BYTES)
        self._has_ended = not data
        try:
            self._received.extend(self._frames.bodies(data))
        finally:
            self._arriving.change(before, self.pending_bytes)

    async def _read_rest(self) -> None:
        try:
            async with OwnTime(FRAME_LIMIT_S):
                while not self._received and not self._has_ended:
                    await self._read()
        except TimeoutError as error:
            message = (
                f"{self.pending_bytes} bytes of a frame came, and its rest not within {FRAME_LIMIT_S:g} s."
            )
            raise ProtocolError("request_timeout", message, "Send a frame at once.") from error

    async def _say_in_turn(self, message: dict[str, Any]) -> None:
        try:
            async with OwnTime(WRITE_LIMIT_S), self._writing:
                await self.writer.drain()
                self.writer.write(answer_frame(message))
                await self.writer.drain()
        except TimeoutError as error:
            text = f"The client has read nothing for {WRITE_LIMIT_S:g} s."
            raise ProtocolError("slow_reader", text, "Read answers as they come.") from error

    async def _ended(self) -> None:
        """What the peer still sends is dropped: it may have to get rid of it before it reads."""
        while await self._reader.read(READ_BYTES):
            pass
        while unread_bytes(self.writer):  # noqa: ASYNC110 (the kernel tells nobody when it is read)
            await asyncio.sleep(POLL_S)

    def forget(self) -> None:
        """The connection is over: what had arrived of a frame counts no more."""
        self._arriving.num_bytes -= self.pending_bytes


def answer_frame(message: dict[str, Any]) -> bytes:
    """Raises SemipdError(`answer_too_large`): a client reads no larger frames and arrays."""
    longest = max((len(value) for value in message.values() if isinstance(value, list)), default=0)
    if longest > MAX_CONTAINER_LEN:
        raise _too_large(f"holds an array of {longest} entries; the limit is {MAX_CONTAINER_LEN}")
    frame = encode_frame(message)
    num_bytes = len(frame) - HEADER.size
    if num_bytes > MAX_FRAME_BYTES:
        raise _too_large(f"takes {num_bytes} bytes; a frame has at most {MAX_FRAME_BYTES}")
    return frame


def _too_large(what: str) -> SemipdError:
    return SemipdError("answer_too_large", f"The answer {what}.", "Ask for less at a time.")


def unread_bytes(writer: asyncio.StreamWriter) -> int:
    """What we have written to a Unix socket and its peer has not read: in our buffer and in the kernel's."""
    buffer = bytearray(_INT.size)
    try:
        fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, buffer)
    except OSError:  # closed
        return 0
    (unread,) = _INT.unpack(buffer)
    return int(unread) + writer.transport.get_write_buffer_size()
