"""A client's subscription: frames at its rate, never a backlog."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.servers.frame_stream import POLL_S, FrameStream, unread_bytes
from semipd.daemon.servers.socket_bodies import SubscribeRequest
from semipd.daemon.state.services import Services
from semipd.wire.client_protocol import StateFrame

MAX_EVENTS = 512
"""Of one frame; the rest comes with the next one."""

READER_LIMIT_S = 600.0
"""A subscriber that reads nothing for so long has gone: a suspended dashboard may come back."""


class Subscription:
    """Sends frames until it is ended or the connection is."""

    def __init__(self, interval_s: float, stream: FrameStream) -> None:
        self._interval_s = interval_s
        self._stream = stream
        self._ended = asyncio.Event()
        self._why = ""

    def end(self, why: str) -> None:
        """The last frame says why. Returns at once."""
        self._why = self._why or why
        self._ended.set()

    async def run(self) -> None:
        due_s = time.monotonic()
        while not self._ended.is_set():
            await self._stream.say(await self._frame())
            due_s = max(due_s + self._interval_s, time.monotonic())
            await self._pause(due_s - time.monotonic())
            await self._reader_has_read_all()
        await self._say_the_rest()

    async def _frame(self) -> dict[str, Any]:
        """The next one."""
        raise NotImplementedError

    async def _say_the_rest(self) -> None:
        """The last frame or frames; `_why` is known."""
        raise NotImplementedError

    async def _reader_has_read_all(self) -> None:
        """So the next frame is built when it will be read, and is the newest there is. Counts looks, not
        time: a daemon that was stopped does not accuse its subscribers."""
        num_looks = 0
        while unread_bytes(self._stream.writer) and not self._ended.is_set():
            num_looks += 1
            if num_looks * POLL_S > READER_LIMIT_S:
                message = f"The subscriber has read nothing for {READER_LIMIT_S:g} s."
                raise ProtocolError("slow_reader", message, "Read frames as they come.")
            await self._pause(POLL_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()


class StateSubscription(Subscription):
    """The newest state, and what has happened."""

    def __init__(self, services: Services, request: SubscribeRequest, stream: FrameStream) -> None:
        """Raises SemipdError(`invalid_value`) when `request.after` is no event id, or when it or `kinds` is
        given without `events`."""
        super().__init__(request.interval_ms / 1e3, stream)
        self._services = services
        self._request = request
        _check_events_asked(request)
        self._after = self._first_cursor(request)
        self._kinds = None if request.kinds is None else frozenset(request.kinds)

    async def _frame(self) -> dict[str, Any]:
        return (await self._next_state()).to_wire(self._request.id)

    async def _say_the_rest(self) -> None:
        await self._stream.say(StateFrame(ended=self._why).to_wire(self._request.id))

    async def _next_state(self) -> StateFrame:
        state = await self._services.state(max_age_s=self._interval_s / 2)
        if not self._request.events:
            return StateFrame(state)
        journal = self._services.history.journal
        entries, lost, self._after = journal.read(self._after, MAX_EVENTS, self._kinds)
        return StateFrame(state, [journal.to_wire(entry) for entry in entries], lost)

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
