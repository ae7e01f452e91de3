"""The journal: life-cycle edges in a bounded ring, read by any number of cursors.

A reader is only a number, the last entry it has seen. So a slow reader costs nothing; one that falls
behind the ring learns how many entries it has lost.
"""

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from semipd.core.events import EventData, EventKind, EventRow, Told
from semipd.system.clock import SYSTEM_CLOCK, Clock

DEFAULT_CAPACITY = 4096
_EVENT_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class Entry:
    """`number` counts from 1 in a daemon's life; `at_ns` is CLOCK_MONOTONIC."""

    number: int
    at_ns: int
    kind: EventKind
    data: Mapping[str, Any]
    request_id: str = ""


class Read(NamedTuple):
    """`lost` entries, of whatever kind, have left the ring before they were read. `cursor` is the next one:
    the last entry that was looked at."""

    entries: list[Entry]
    lost: int
    cursor: int


class Journal:
    """`epoch` tells the numbers of this daemon's life from those of another."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY, clock: Clock = SYSTEM_CLOCK) -> None:
        self.epoch = int(clock.time_s())
        self.last = 0
        self.closed = False
        self._slots: list[Entry | None] = [None] * capacity
        self._clock = clock
        self._grown: asyncio.Future[None] | None = None

    def add(self, at_ns: int, told: Told, request_id: str = "") -> Entry:
        self.last += 1
        entry = Entry(self.last, at_ns, told.kind, told.data, request_id)
        self._slots[self.last % len(self._slots)] = entry
        self._wake()
        return entry

    def read(self, after: int, limit: int, kinds: Collection[str] | None = None) -> Read:
        """The next entries behind the cursor `after`, of these kinds (None: all), `limit` at most."""
        oldest = max(self.last - len(self._slots), 0) + 1
        start = max(after + 1, oldest)
        found: list[Entry] = []
        cursor = start - 1
        for cursor in range(start, self.last + 1):
            entry = self._slots[cursor % len(self._slots)]
            assert entry is not None, f"entry {cursor} of {self.last} is not in the ring"
            if kinds is None or entry.kind in kinds:
                found.append(entry)
                if len(found) == limit:
                    break
        return Read(found, start - after - 1, cursor)

    async def changed(self, after: int) -> None:
        """Wait until there is an entry behind `after`, or the journal is closed."""
        while self.last <= after and not self.closed:
            if self._grown is None or self._grown.done():
                self._grown = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._grown)

    def close(self) -> None:
        """Wake every reader for the last time."""
        self.closed = True
        self._wake()

    def wall_s(self, at_ns: int) -> float:
        """Unix time of a moment of CLOCK_MONOTONIC."""
        return self._clock.wall_s(at_ns)

    def to_wire(self, entry: Entry) -> EventRow:
        return {
            "id": f"{self.epoch}-{entry.number}",
            "at_s": self.wall_s(entry.at_ns),
            "kind": entry.kind,
            "request_id": entry.request_id or None,
            "data": cast(EventData, entry.data),
        }

    def cursor(self, event_id: str) -> int | None:
        """The cursor that `event_id` stands for; 0, the beginning, if it is of another daemon's life. None:
        no id of ours."""
        found = _EVENT_ID.fullmatch(event_id)
        if found is None:
            return None
        epoch, number = map(int, found.groups())
        return number if epoch == self.epoch and number <= self.last else 0

    def _wake(self) -> None:
        if self._grown is not None and not self._grown.done():
            self._grown.set_result(None)
