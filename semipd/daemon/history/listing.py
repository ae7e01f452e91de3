"""Long lists of requests, written a few at a time: one slice of one list in a turn of the event loop, whoever
asks, so that lists delay nobody."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from semipd.daemon.history.record import RequestRecord

SLICE_RECORDS = 64
"""Less than a millisecond."""

T = TypeVar("T")


class Listings:
    """All of a daemon's."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def written(
        self, records: Sequence[RequestRecord], write: Callable[[Sequence[RequestRecord]], T]
    ) -> list[T]:
        """`write` of each slice."""
        if len(records) <= SLICE_RECORDS and not self._turn.locked():
            return [write(records)] if records else []
        parts: list[T] = []
        for begin in range(0, len(records), SLICE_RECORDS):
            async with self._turn:
                parts.append(write(records[begin : begin + SLICE_RECORDS]))
                await asyncio.sleep(0)
        return parts
