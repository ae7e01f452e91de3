"""Service levels: TTFT and TPOT of the requests that ended lately, and how many met their targets."""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from semipd.core.percentile import percentile
from semipd.core.slo import Slo
from semipd.core.state.partition import Percentiles, SloState
from semipd.daemon.history.record import RequestRecord

MAX_OUTCOMES = 4096
"""Beyond that many in a window, the window covers the latest of them."""


class RequestOutcome(NamedTuple):
    """`delay_ms`: the TTFT target is so much longer for a request that agreed to wait."""

    at_ns: int
    met: bool
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    delay_ms: float = 0.0


class SloWindow:
    """Attainment = requests that met both targets over all that arrived; refused and failed ones are
    misses, those the client cancelled are left out. Goodput = requests that met both, per second.

    A request that its own client got wrong (`is_clients_fault` of the error's code) is left out too.
    """

    def __init__(
        self,
        targets: Slo,
        is_clients_fault: Callable[[str], bool],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.targets = targets
        self.num_judged = 0
        self.num_met = 0
        self._is_clients_fault = is_clients_fault
        self._clock_ns = clock_ns
        self._began_ns = clock_ns()
        self._outcomes: deque[RequestOutcome] = deque()
        self._num_met_in_window = 0
        self._ttfts_ms: list[float] = []
        self._tpots_ms: list[float] = []
        """Of the window's outcomes, rising: kept so, since a dashboard asks several times a second."""

    def finished(self, record: RequestRecord) -> None:
        if record.finish_reason == "cancelled":
            return
        if record.finish_reason == "error":
            self.refused(record.error_code or "")
            return
        outcome = RequestOutcome(
            self._clock_ns(), False, record.ttft_ms, record.tpot_ms, record.delay_ns / 1e6
        )
        self._add(outcome._replace(met=self._meets(outcome)))

    def refused(self, code: str) -> None:
        if not self._is_clients_fault(code):
            self._add(RequestOutcome(self._clock_ns(), met=False))

    def retarget(self, targets: Slo) -> None:
        """From now on; the requests of the window are judged anew, the totals stay as they were counted."""
        self.targets = targets
        for idx, outcome in enumerate(self._outcomes):
            self._outcomes[idx] = outcome._replace(met=self._meets(outcome))
        self._num_met_in_window = sum(outcome.met for outcome in self._outcomes)

    def snapshot(self) -> SloState:
        """Percentiles are None without a request in the window, and so is attainment."""
        now_ns = self._clock_ns()
        self._forget(now_ns)
        num, num_met = len(self._outcomes), self._num_met_in_window
        return {
            "targets": self.targets.to_wire(),
            "requests": num,
            "attainment": num_met / num if num else None,
            "goodput_rps": num_met / self._span_s(now_ns),
            "ttft_ms": _percentiles(self._ttfts_ms),
            "tpot_ms": _percentiles(self._tpots_ms),
        }

    def _meets(self, outcome: RequestOutcome) -> bool:
        """Without a first token nothing is met; an answer of one token has no TPOT."""
        _, _, ttft_ms, tpot_ms, delay_ms = outcome
        in_time = ttft_ms is not None and ttft_ms <= self.targets.ttft_ms + delay_ms
        return in_time and (tpot_ms is None or tpot_ms <= self.targets.tpot_ms)

    def _add(self, outcome: RequestOutcome) -> None:
        if len(self._outcomes) == MAX_OUTCOMES:
            self._drop_oldest()
        self._outcomes.append(outcome)
        for ordered, value in self._ordered(outcome):
            insort(ordered, value)
        self._num_met_in_window += outcome.met
        self.num_judged += 1
        self.num_met += outcome.met

    def _forget(self, now_ns: int) -> None:
        start_ns = now_ns - self.targets.window_s * 1e9
        while self._outcomes and self._outcomes[0].at_ns < start_ns:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        outcome = self._outcomes.popleft()
        for ordered, value in self._ordered(outcome):
            del ordered[bisect_left(ordered, value)]
        self._num_met_in_window -= outcome.met

    def _ordered(self, outcome: RequestOutcome) -> Iterator[tuple[list[float], float]]:
        """Where its values stand among the others'."""
        if outcome.ttft_ms is not None:
            yield self._ttfts_ms, outcome.ttft_ms
        if outcome.tpot_ms is not None:
            yield self._tpots_ms, outcome.tpot_ms

    def _span_s(self, now_ns: int) -> float:
        """The time the outcomes cover: shorter than the window in a young daemon or a full deque."""
        full = len(self._outcomes) == MAX_OUTCOMES
        began_ns = self._outcomes[0].at_ns if full else self._began_ns
        return min(self.targets.window_s, max((now_ns - began_ns) / 1e9, 1.0))


def _percentiles(ordered: Sequence[float]) -> Percentiles:
    return {"p50": percentile(ordered, 50), "p90": percentile(ordered, 90), "p99": percentile(ordered, 99)}
