"""A recording as a source: its items in the time of the record, which can be paused, hurried and skipped."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, NoReturn

from semipd.core.errors import SemipdError
from semipd.core.events import EventRow
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import RequestRow
from semipd_top.sources.contract import Gone, Item, Operator, Seen
from semipd_top.sources.recording import Recording

MIN_SPEED, MAX_SPEED = 0.01, 1000.0
MAX_ROWS = 4096
MAX_EVENTS = 20_000
"""Of the past, for who looks at one request."""


class ReplayClock:
    """Unix time as it was, running on at `speed` seconds a second; it stands still while `paused`."""

    def __init__(self, at_s: float, speed: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._at_s, self._since_s = at_s, clock_s()
        self._speed, self._paused = speed, False
        self._clock_s = clock_s
        self._changed = asyncio.Event()

    def now_s(self) -> float:
        if self._paused:
            return self._at_s
        return self._at_s + (self._clock_s() - self._since_s) * self._speed

    @property
    def speed(self) -> float:
        return self._speed

    @property
    def paused(self) -> bool:
        return self._paused

    def set(
        self, *, at_s: float | None = None, speed: float | None = None, paused: bool | None = None
    ) -> None:
        """Whoever waits looks again."""
        now_s = self.now_s()
        self._at_s, self._since_s = now_s if at_s is None else at_s, self._clock_s()
        self._speed = self._speed if speed is None else speed
        self._paused = self._paused if paused is None else paused
        self._changed.set()

    async def until(self, at_s: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until it is so late, or `is_enough` holds after a change."""
        while not is_enough() and (left_s := at_s - self.now_s()) > 0:
            self._changed.clear()
            wait_s = None if self._paused else left_s / self._speed
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue


class ReplaySource:
    """Nothing can be changed; one request can be looked at, as far as it was recorded."""

    def __init__(self, path: Path, speed: float | None = 1.0) -> None:
        """`speed` None: no waiting at all, the time is that of the item last yielded. Raises SemipdError:
        what Recording raises, and `invalid_value`."""
        if speed is not None:
            check_speed(speed)
        self.recording = Recording(path)
        self._waits = speed is not None
        self._clock = ReplayClock(self.recording.header.began_s, speed or 1.0)
        self._past = _Past()
        self._num_steps = 0

    @property
    def title(self) -> str:
        return f"{self.recording.path} ({self.recording.header.title})"

    @property
    def interval_s(self) -> float:
        return self.recording.header.interval_s

    @property
    def why_read_only(self) -> str:
        return "this is a recording"

    @property
    def operator(self) -> Operator:
        return self._past

    def now_s(self) -> float:
        return self._clock.now_s()

    @property
    def speed(self) -> float:
        return self._clock.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        """Raises SemipdError(`invalid_value`)."""
        check_speed(speed)
        self._clock.set(speed=speed)

    @property
    def paused(self) -> bool:
        return self._clock.paused

    def pause(self) -> None:
        """Time stands still."""
        self._clock.set(paused=True)

    def resume(self) -> None:
        self._num_steps = 0
        self._clock.set(paused=False)

    def step(self) -> None:
        """The next item now, and then stand still."""
        self._num_steps += 1
        self._clock.set(paused=True)

    def skip(self, seconds: float) -> None:
        """Forward: what was recorded meanwhile comes at once. There is no way back but another source."""
        assert seconds >= 0, f"skip({seconds})"
        self._clock.set(at_s=self.now_s() + seconds)

    async def items(self) -> AsyncGenerator[Item, None]:
        is_first = True
        try:
            for item in self.recording.items():
                if is_first or not self._waits:
                    self._clock.set(at_s=item.at_s)
                is_first = False
                await self._due(item)
                self._past.take(item)
                yield item
        finally:
            self.recording.close()
        # ages of what was shown last stay what they are
        self._clock.set(paused=True)
        cut = self.recording.cut
        code, message = ("recording_cut", cut) if cut else ("recording_over", "The recording is over.")
        yield Gone(self.now_s(), code, message)

    async def _due(self, item: Item) -> None:
        await self._clock.until(item.at_s, lambda: self._num_steps > 0)
        if self._num_steps and self.now_s() < item.at_s:
            self._clock.set(at_s=item.at_s)
        self._num_steps = max(self._num_steps - 1, 0)


def check_speed(speed: float) -> None:
    """Raises SemipdError(`invalid_value`)."""
    if not MIN_SPEED <= speed <= MAX_SPEED:
        message = f"The speed is {speed:g}; it must lie between {MIN_SPEED:g} and {MAX_SPEED:g}."
        raise SemipdError("invalid_value", message, param="speed")


class _Past:
    """The operator of a recording: what it has told so far."""

    def __init__(self) -> None:
        self._listed: list[RequestRow] = []
        self._rows: dict[tuple[str, int], RequestRow] = {}
        self._events: deque[EventRow] = deque(maxlen=MAX_EVENTS)

    def take(self, item: Item) -> None:
        if not isinstance(item, Seen):
            return
        self._events.extend(item.frame.events)
        if item.requests is None:
            return
        self._listed = list(item.requests)
        for row in reversed(self._listed):
            # at the end again: the one not seen for longest goes first
            self._rows.pop((row["id"], row["seq"]), None)
            self._rows[row["id"], row["seq"]] = row
        for key in list(self._rows)[:-MAX_ROWS]:
            del self._rows[key]

    async def requests(
        self, *, state: str | None = None, limit: int | None = None, request_id: str | None = None
    ) -> list[RequestRow]:
        if request_id is not None:
            rows = [row for row in self._rows.values() if row["id"] == request_id]
            events = [event for event in self._events if event["request_id"] == request_id]
            return [{**row, "events": events} for row in reversed(rows)]
        return [row for row in self._listed if _matches(row, state)][:limit]

    async def partition(self) -> PartitionDocument:
        _refuse("Partition control's tables are not recorded; its numbers are in the frames.")

    async def set_partition(self, **fields: Any) -> ChangeAnswer:
        _refuse("This is a recording: the split cannot be changed.")

    async def clear_partition(self, **fields: Any) -> ChangeAnswer:
        _refuse("This is a recording: no override can be ended.")

    async def set_slo(self, **fields: Any) -> SloAnswer:
        _refuse("This is a recording: targets cannot be changed.")

    async def cancel_request(self, request_id: str) -> str:
        _refuse(f"This is a recording: the request {request_id!r:.140} cannot be cancelled.")


def _matches(row: RequestRow, state: str | None) -> bool:
    return state is None or row["state"] == state or (state == "live" and row["state"] != "finished")


def _refuse(message: str) -> NoReturn:
    raise SemipdError("recording_read_only", message, "Connect to the daemon itself.")
