"""A running daemon as a source. It reconnects by itself, and goes on behind the last event it has seen."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from semipd.client import AsyncClient, StateStream
from semipd.command_line.answers import understood
from semipd.core.errors import SemipdError
from semipd.core.state.requests import RequestRow
from semipd.wire.address import default_socket_path
from semipd.wire.client_protocol import StateFrame
from semipd_top.sources.contract import REQUEST_ROWS, Gone, Item, Operator, Seen

FIRST_RETRY_S = 0.5
MAX_RETRY_S = 5.0
REQUESTS_EVERY_S = 1.0
FRAME_LIMIT_S = 10.0
"""And three intervals: a daemon that sends no frame for so long is given up and called again."""

FINAL_CODES = frozenset({"operator_required", "peer_not_allowed", "protocol_version", "hello_expected"})
"""Trying again would change nothing."""

BEFORE_ALL_EVENTS = "0-0"
"""As `after`: an id of no daemon's life, so whatever the ring still holds is sent."""


class LiveSource:
    """The daemon at a Unix socket, whether or not it runs yet."""

    why_read_only = ""

    def __init__(
        self,
        socket_path: Path | None = None,
        interval_s: float = 0.5,
        wants_requests: Callable[[], bool] = lambda: True,
        *,
        past_events: bool = False,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """`socket_path` None: where the daemon puts it. `wants_requests` is asked before each listing of
        requests, which come once a second at most. `past_events`: begin with those that the daemon still
        remembers."""
        self.interval_s = interval_s
        self._path = socket_path or default_socket_path()
        self._wants_requests = wants_requests
        self._clock_s = clock_s
        self._after: str | None = BEFORE_ALL_EVENTS if past_events else None
        self._client: AsyncClient | None = None
        self._list_due_s = 0.0

    @property
    def title(self) -> str:
        return str(self._path)

    @property
    def operator(self) -> Operator:
        if self._client is None:
            message = f"There is no connection to a daemon at {self._path}."
            raise SemipdError("not_connected", message, "Wait until it is there again.")
        return self._client

    def now_s(self) -> float:
        return self._clock_s()

    async def items(self) -> AsyncGenerator[Item, None]:
        retry_in_s = FIRST_RETRY_S
        while True:
            try:
                async with aclosing(self._connection()) as connection:
                    async for seen in connection:
                        retry_in_s = FIRST_RETRY_S
                        yield seen
                why = SemipdError(
                    "shutting_down", "The daemon is stopping.", "Start it again when it has ended."
                )
            except SemipdError as error:
                why = error
            gone = self._gone(why, retry_in_s)
            yield gone
            if gone.retry_s is None:
                return
            await asyncio.sleep(max(gone.retry_s - self.now_s(), 0.0))
            retry_in_s = min(2 * retry_in_s, MAX_RETRY_S)

    def _gone(self, why: SemipdError, retry_in_s: float) -> Gone:
        now_s = self.now_s()
        retry_s = None if why.code in FINAL_CODES else now_s + retry_in_s
        return Gone(now_s, why.code, why.message, why.hint, retry_s)

    async def _connection(self) -> AsyncGenerator[Seen, None]:
        """One connection, until the daemon says that it stops. Raises SemipdError when it is lost, or none
        comes about."""
        async with await AsyncClient.connect(self._path) as client:
            try:
                interval_ms = round(self.interval_s * 1e3)
                states = client.subscribe(interval_ms=interval_ms, events=True, after=self._after)
                while (seen := await self._seen(client, states)) is not None:
                    # not before: whoever is not let in is no operator
                    self._client = client
                    yield seen
            finally:
                self._client = None

    async def _seen(self, client: AsyncClient, states: StateStream) -> Seen | None:
        """None: there is no more."""
        with understood(self._path):
            frame = await self._next_frame(states)
            if frame is None:
                return None
            return Seen(self.now_s(), self._noted(frame), await self._requests(client))

    async def _next_frame(self, states: StateStream) -> StateFrame | None:
        """None: there are no more."""
        limit_s = FRAME_LIMIT_S + 3 * self.interval_s
        try:
            async with asyncio.timeout(limit_s):
                return await anext(states, None)
        except TimeoutError as error:
            message = f"The daemon at {self._path} has sent nothing for {limit_s:g} s."
            raise SemipdError(
                "daemon_silent", message, "Look at its log, and whether it is stopped."
            ) from error

    def _noted(self, frame: StateFrame) -> StateFrame:
        if self._after == BEFORE_ALL_EVENTS:
            # what was overwritten before we came is not our loss
            frame = replace(frame, lost=0)
        if frame.events:
            self._after = frame.events[-1]["id"]
        return frame

    async def _requests(self, client: AsyncClient) -> Sequence[RequestRow] | None:
        now_s = time.monotonic()
        if not self._wants_requests() or now_s < self._list_due_s:
            return None
        self._list_due_s = max(self._list_due_s + REQUESTS_EVERY_S, now_s)
        return await client.requests(limit=REQUEST_ROWS)
