"""How long to wait before the next engine is started, and when to give up. Pure: time is passed in."""

from collections import deque

from semipd.config.sections import SupervisionConfig


class Restarts:
    """Counts deaths; an engine that fails to start counts as dead.

    Time is what engines have spent serving: a start that takes minutes and then fails would otherwise
    outlast every window and be tried for ever.
    """

    def __init__(self, settings: SupervisionConfig) -> None:
        self._settings = settings
        self._served_s = 0.0
        self._recent_s: deque[float] = deque()
        self._fruitless_s: deque[float] = deque()

    @property
    def num_fruitless(self) -> int:
        """Deaths in a row within the window, nothing achieved between them; the last one included."""
        return len(self._fruitless_s)

    def died(self, served_s: float, *, fruitful: bool) -> float | None:
        """An engine that has served so long is dead. Seconds until the next start; None: give up.
        `fruitful`: something was achieved since the death before, so this one is the first of a row."""
        self._served_s += served_s
        if fruitful:
            self._fruitless_s.clear()
        for deaths_s in (self._recent_s, self._fruitless_s):
            deaths_s.append(self._served_s)
            while deaths_s[0] < self._served_s - self._settings.window_s:
                deaths_s.popleft()
        if len(self._fruitless_s) >= self._settings.max_deaths:
            return None
        # beyond 2**60 the float would overflow in the end, and every limit is below
        doublings = min(len(self._recent_s) - 1, 60)
        return min(self._settings.backoff_s * 2.0**doublings, self._settings.backoff_max_s)
