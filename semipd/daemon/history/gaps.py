"""Times between the tokens of one request, as they leave the daemon."""

from bisect import bisect_left

from semipd.core.slo import most_slow_gaps

_RATIO = 2 ** (1 / 16)
_BOUNDS_NS = tuple(round(1e5 * _RATIO**idx) for idx in range(16 * 26))
"""Between 0.1 ms and 1.8 hours, each 4.4 % above the one before."""

_NEVER_NS = 2**62


class TokenGaps:
    """One gap for each token but the first. Of several tokens that leave together the first has the gap
    before them, the others have gaps of 0.

    Whether they keep the target `limit_ms` is counted, and exact. Their percentile is read from a histogram:
    where it is above 0.1 ms, at most 4.4 % above the true one and never below it; and never on the other side
    of `limit_ms`.
    """

    __slots__ = ("_counts", "_limit_ns", "limit_ms", "num_slow", "num_tokens")

    def __init__(self, limit_ms: float | None) -> None:
        self.limit_ms = limit_ms
        self.num_tokens = 0
        """That have left."""
        self.num_slow = 0
        self._limit_ns = _NEVER_NS if limit_ms is None else round(limit_ms * 1e6)
        self._counts: dict[int, int] = {}
        """Gaps between messages by bucket, whose upper bounds are `_BOUNDS_NS`; the others are 0."""

    def __len__(self) -> int:
        return max(self.num_tokens - 1, 0)

    def add(self, gap_ns: int, num_tokens: int) -> None:
        """Tokens have left in one message, `gap_ns` after the one before. Called for every message of every
        stream; the first one has no gap. `num_tokens`: all of them so far."""
        if self.num_tokens:
            if gap_ns > self._limit_ns:
                self.num_slow += 1
            bucket, counts = bisect_left(_BOUNDS_NS, gap_ns), self._counts
            counts[bucket] = counts[bucket] + 1 if bucket in counts else 1
        self.num_tokens = num_tokens

    def percentile_ms(self, pct: float) -> float | None:
        """None: there is no second token."""
        if not len(self):
            return None
        most_slow = most_slow_gaps(len(self), pct)
        found_ms = self._read_ms(sum(self._counts.values()) - most_slow)
        if self.limit_ms is not None and self.num_slow <= most_slow:
            return min(found_ms, self.limit_ms)
        return found_ms

    def _read_ms(self, rank: int) -> float:
        """Upper bound of the bucket with the gap of this rank, from 1, among those that are not 0."""
        found_ns = 0
        for bucket, count in sorted(self._counts.items()):
            if rank <= 0:
                break
            rank -= count
            found_ns = _BOUNDS_NS[bucket] if bucket < len(_BOUNDS_NS) else _NEVER_NS
        return found_ns / 1e6
