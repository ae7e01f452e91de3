"""Rate limits: a token bucket for each key or address."""

import time
from collections import OrderedDict
from collections.abc import Callable

from semipd.core.errors import SemipdError

MAX_BUCKETS = 65536
"""Callers remembered; who was not heard of for longest is forgotten first."""


class RateLimiter:
    """`rate_per_s` 0: no limit. `burst`: requests that a full bucket holds."""

    def __init__(self, rate_per_s: float, burst: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock_s = clock_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, at which time

    def take(self, who: str) -> None:
        """Raises SemipdError(`rate_limited`), which carries when to come again; that costs no token."""
        if not self._rate_per_s:
            return
        now_s = self._clock_s()
        left, since_s = self._buckets.pop(who, (float(self._burst), now_s))
        left = min(left + (now_s - since_s) * self._rate_per_s, self._burst)
        self._buckets[who] = (left - 1 if left >= 1 else left, now_s)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise SemipdError(
                "rate_limited",
                f"More than limits.requests_per_s={self._rate_per_s:g} requests per second "
                f"(limits.burst={self._burst} at once).",
                "Send requests more slowly.",
                retry_after_s=(1 - left) / self._rate_per_s,
            )
