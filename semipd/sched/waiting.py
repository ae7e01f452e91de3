"""The prefill queue: first come first served, but a request that is mostly cached may go ahead.

A request with a delay stands behind everybody who comes within that time after it, and no later: the bound
against its starvation.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from itertools import islice

from semipd.sched.sequence import Sequence

WINDOW = 8
"""Requests looked at per pick: each look walks the prefix index."""

ADVANTAGE = 4
"""A request goes ahead only if it needs this many times fewer new tokens than the head."""

MAX_OVERTAKEN = 4
"""Nobody is overtaken more often than this: the bound against starvation."""


class WaitingQueue:
    """Ordered by arrival and delay, so a preempted request comes back to its old place."""

    def __init__(self) -> None:
        self._queue: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._queue)

    def add(self, sequence: Sequence) -> None:
        insort(self._queue, sequence, key=lambda s: s.age_key)

    def pick(self, cached_tokens: Callable[[Sequence], int]) -> Sequence:
        """Who should be placed next; changes nothing. The queue must not be empty.

        The head, unless a request close behind has part of its prompt cached and needs far fewer new
        tokens: its blocks could be evicted while it waits, and the head loses little by it.
        """
        head = self._queue[0]
        head_fresh = len(head.tokens) - cached_tokens(head)
        best, best_fresh = head, head_fresh
        for sequence in self._candidates():
            cached = cached_tokens(sequence)
            fresh = len(sequence.tokens) - cached
            if cached and fresh < best_fresh and fresh * ADVANTAGE <= head_fresh:
                best, best_fresh = sequence, fresh
        return best

    def take(self, sequence: Sequence) -> None:
        """Remove a picked request; those it passes by have been overtaken once more."""
        idx = self._queue.index(sequence)
        for earlier in self._queue[:idx]:
            earlier.overtaken += 1
        del self._queue[idx]

    def remove(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)

    def oldest_arrival_ns(self) -> int | None:
        return min((sequence.request.arrival_ns for sequence in self._queue), default=None)

    def check_integrity(self) -> None:
        keys = [s.age_key for s in self._queue]
        assert keys == sorted(set(keys)), f"queue is not in arrival order: {keys}"
        assert all(s.phase == "waiting" for s in self._queue), "a queued request is not waiting"
        assert all(s.overtaken <= MAX_OVERTAKEN for s in self._queue), "a request was overtaken too often"

    def _candidates(self) -> Iterator[Sequence]:
        """Those behind the head that may pass everyone before them. A longer delay passes nobody."""
        head = self._queue[0]
        if head.overtaken >= MAX_OVERTAKEN:
            return
        for sequence in islice(self._queue, 1, WINDOW):
            if sequence.request.delay_ns > head.request.delay_ns:
                return
            yield sequence
            if sequence.overtaken >= MAX_OVERTAKEN:
                return
