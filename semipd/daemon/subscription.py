"""A client's subscription: the newest state at its rate, never a backlog."""

import asyncio
import fcntl
import struct
import termios
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from semipd.core.errors import SemipdError
from semipd.daemon.schema import SubscribeRequest
from semipd.daemon.services import Services
from semipd.wire.client_protocol import StateFrame

MAX_EVENTS = 512
"""Of one frame; the rest comes with the next one."""

POLL_S = 0.02
"""How often to look whether a slow reader has caught up."""

READER_LIMIT_S = 600.0
"""A subscriber that reads nothing for so long has gone: a suspended dashboard may come back."""

_INT = struct.Struct("i")


class Subscription:
    """Sends frames with `say` until it is ended or the connection is."""

    def __init__(
        self,
        services: Services,
        request: SubscribeRequest,
        writer: asyncio.StreamWriter,
        say: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Raises SemipdError(`invalid_value`) when `request.after` is no event id, or when it or `kinds` is
        given without `events`."""
        self._services = services
        self._request = request
        self._writer = writer
        self._say = say
        self._interval_s = request.interval_ms / 1e3
        _check_events_asked(request)
        self._after = self._first_cursor(request)
        self._kinds = None if request.kinds is None else frozenset(request.kinds)
        self._ended = asyncio.Event()
        self._why = ""

    def end(self, why: str) -> None:
        """The last frame says why. Returns at once."""
        self._why = self._why or why
        self._ended.set()

    async def run(self) -> None:
        due_s = time.monotonic()
        while not self._ended.is_set():
            await self._say((await self._frame()).to_wire(self._request.id))
            due_s = max(due_s + self._interval_s, time.monotonic())
            await self._pause(due_s - time.monotonic())
            await self._reader_has_read_all()
        await self._say(StateFrame(ended=self._why).to_wire(self._request.id))

    async def _frame(self) -> StateFrame:
        state = await self._services.state(max_age_s=self._interval_s / 2)
        if not self._request.events:
            return StateFrame(state)
        journal = self._services.history.journal
        entries, lost, self._after = journal.read(self._after, MAX_EVENTS, self._kinds)
        return StateFrame(state, [journal.to_wire(entry) for entry in entries], lost)

    async def _reader_has_read_all(self) -> None:
        """So the next frame is built when it will be read, and is the newest there is."""
        limit_s = time.monotonic() + READER_LIMIT_S
        while unread_bytes(self._writer) and not self._ended.is_set():
            if time.monotonic() > limit_s:
                raise TimeoutError("the subscriber reads nothing")
            await self._pause(POLL_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def _first_cursor(self, request: SubscribeRequest) -> int:
        journal = self._services.history.journal
        if request.after is None:
            return journal.last
        after = journal.cursor(request.after)
        if after is None:
            raise SemipdError("invalid_value", f"{request.after!r:.80} is no event id.", param="after")
        return after


def _check_events_asked(request: SubscribeRequest) -> None:
    for name in ("after", "kinds"):
        if getattr(request, name) is not None and not request.events:
            message = f"{name} chooses among events, and events is not true."
            raise SemipdError("invalid_value", message, f"Set events too, or leave {name} out.", param=name)


def unread_bytes(writer: asyncio.StreamWriter) -> int:
    """What we have written to a Unix socket and its peer has not read: in our buffer and in the kernel's."""
    buffer = bytearray(_INT.size)
    try:
        fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, buffer)
    except OSError:  # closed
        return 0
    (unread,) = _INT.unpack(buffer)
    return int(unread) + writer.transport.get_write_buffer_size()
