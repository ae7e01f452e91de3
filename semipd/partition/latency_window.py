"""What requests experienced in the last seconds: percentiles for status and policies."""

from collections import deque

from semipd.core.percentile import percentile
from semipd.core.slo import Slo
from semipd.core.split import Split
from semipd.partition.interface import ClosedWindow, Observed

REFRESH_NS = 500_000_000
"""Between two computations of the percentiles."""

CLOSE_AFTER_REQUESTS = 32
"""Finished requests of a closed window. The paper names no number; its released code waits for 400."""

MAX_CLOSED = 16

Samples = deque[tuple[int, float]]
"""(time, value), oldest first."""


class LatencyWindow:
    """TTFT and TPOT as the engine sees them: from the request's arrival at the daemon to the turn in which
    the engine sends the token."""

    def __init__(self) -> None:
        self.closed: deque[ClosedWindow] = deque(maxlen=MAX_CLOSED)
        self.num_closed = 0
        self._arrivals: deque[int] = deque()
        self._ttfts: Samples = deque()
        self._tpots: Samples = deque()
        self._output_tokens: Samples = deque()
        self._observed = Observed()
        self._refresh_due_ns = 0
        self._began_ns: int | None = None
        self._open = _OpenWindow(0)

    def arrived(self, now_ns: int) -> None:
        if self._began_ns is None:
            self._began_ns, self._open = now_ns, _OpenWindow(now_ns)
        self._arrivals.append(now_ns)
        self._open.num_arrivals += 1

    def first_token(self, now_ns: int, ttft_ms: float) -> None:
        self._ttfts.append((now_ns, ttft_ms))
        self._open.ttfts.append(ttft_ms)

    def prefilled(self, busy_ns: int, units: int, num_units: int) -> None:
        """A prefill step, scaled to the whole device by Eq. 1 of the paper."""
        self._open.full_prefill_s += busy_ns / 1e9 * units / num_units

    def finished(
        self, now_ns: int, tpot_ms: float | None, output_tokens: int, split: Split, slo: Slo
    ) -> None:
        """A request ended well; `tpot_ms` is None for one token. Closes a window when it is full."""
        self._open.num_finished += 1
        if tpot_ms is not None:
            self._tpots.append((now_ns, tpot_ms))
            self._output_tokens.append((now_ns, output_tokens))
            self._open.tpots.append(tpot_ms)
        if self._open.num_finished >= CLOSE_AFTER_REQUESTS:
            if (closed := self._open.close(now_ns, split, slo)) is not None:
                self.closed.append(closed)
                self.num_closed += 1
            self._open = _OpenWindow(now_ns)

    def restart(self, now_ns: int) -> None:
        """The split has changed: an open window would mix two splits."""
        self._open = _OpenWindow(now_ns)

    def observed(self, now_ns: int, slo: Slo) -> Observed:
        if now_ns >= self._refresh_due_ns:
            self._refresh_due_ns = now_ns + REFRESH_NS
            self._observed = self._compute(now_ns, slo)
        return self._observed

    def forget_cached(self) -> None:
        """The SLO has changed."""
        self._refresh_due_ns = 0

    def _compute(self, now_ns: int, slo: Slo) -> Observed:
        horizon_ns = now_ns - int(slo.window_s * 1e9)
        while self._arrivals and self._arrivals[0] < horizon_ns:
            self._arrivals.popleft()
        ttfts, tpots = _recent(self._ttfts, horizon_ns), _recent(self._tpots, horizon_ns)
        output_tokens = _recent(self._output_tokens, horizon_ns)
        span_ns = now_ns - max(horizon_ns, self._began_ns or 0)
        return Observed(
            ttft_ms=percentile(sorted(ttfts), slo.percentile),
            tpot_ms=percentile(sorted(tpots), slo.percentile),
            mean_tpot_ms=sum(tpots) / len(tpots) if tpots else None,
            mean_output_tokens=sum(output_tokens) / len(output_tokens) if output_tokens else None,
            arrivals_per_s=len(self._arrivals) / (span_ns / 1e9) if span_ns > 0 else 0.0,
        )


class _OpenWindow:
    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.num_arrivals = 0
        self.num_finished = 0
        self.full_prefill_s = 0.0
        self.ttfts: list[float] = []
        self.tpots: list[float] = []

    def close(self, now_ns: int, split: Split, slo: Slo) -> ClosedWindow | None:
        """None when there is nothing to learn from: no first token, or only answers of one token."""
        ttft_ms = percentile(sorted(self.ttfts), slo.percentile)
        tpot_ms = percentile(sorted(self.tpots), slo.percentile)
        seconds = (now_ns - self.began_ns) / 1e9
        if ttft_ms is None or tpot_ms is None or seconds <= 0:
            return None
        return ClosedWindow(
            split, ttft_ms, tpot_ms, self.num_arrivals / seconds, self.full_prefill_s / len(self.ttfts)
        )


def _recent(samples: Samples, horizon_ns: int) -> list[float]:
    while samples and samples[0][0] < horizon_ns:
        samples.popleft()
    return [value for _, value in samples]
