"""Service levels: latencies of the requests that ended lately, and how many met their targets, by class."""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from semipd.core.percentile import percentile
from semipd.core.slo import DEFAULT_CLASS, NO_TARGETS, Slo, Targets
from semipd.core.state.partition import ClassLevels, Levels, Percentiles, SloState
from semipd.daemon.history.record import RequestRecord

MAX_OUTCOMES = 4096
"""Beyond that many in a window, the window covers the latest of them."""


class RequestOutcome(NamedTuple):
    """`itl_ms`: percentile of its own inter-token times. `uncached_tokens`: of the prompt. `targets`: what it
    was judged by."""

    at_ns: int
    service_class: str
    met: bool = False
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None
    uncached_tokens: int = 0
    targets: Targets = NO_TARGETS

    def judged(self, targets: Targets) -> "RequestOutcome":
        """Without a first token nothing is met; an answer of one token has no TPOT. By other targets
        than those its tokens were counted against, inter-token times are judged to a few percent, see
        gaps.TokenGaps."""
        in_time = self.ttft_ms is not None and self.ttft_ms <= targets.ttft_limit_ms(self.uncached_tokens)
        met = in_time and _keeps(self.tpot_ms, targets.tpot_ms) and _keeps(self.itl_ms, targets.itl_ms)
        return self._replace(met=met, targets=targets)

    @classmethod
    def of(cls, record: RequestRecord, at_ns: int, itl_percentile: float) -> "RequestOutcome":
        """A request that ended well."""
        return cls(
            at_ns,
            record.service.service_class,
            ttft_ms=record.ttft_ms,
            tpot_ms=record.tpot_ms,
            itl_ms=record.gaps.percentile_ms(itl_percentile),
            uncached_tokens=record.prompt_tokens - record.cached_tokens,
        ).judged(record.service.targets)


class ServiceLevels:
    """Each request is judged by its own targets. Attainment = requests that met all of them over all that
    arrived; refused and failed ones are misses, those the client cancelled are left out. Goodput = requests
    that met all of them, per second.

    A request that its own client got wrong (`is_clients_fault` of the error's code) is left out too.
    """

    def __init__(
        self,
        slo: Slo,
        classes: Iterable[str],
        is_clients_fault: Callable[[str], bool],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.slo = slo
        self.all = SloWindow(clock_ns)
        self.by_class = {name: SloWindow(clock_ns) for name in classes}
        self._is_clients_fault = is_clients_fault
        self._clock_ns = clock_ns

    def finished(self, record: RequestRecord) -> None:
        if record.finish_reason == "cancelled":
            return
        if record.finish_reason == "error":
            self.refused(record.error_code or "", record.service.service_class)
            return
        self._add(RequestOutcome.of(record, self._clock_ns(), self.slo.itl_percentile))

    def refused(self, code: str, service_class: str = DEFAULT_CLASS) -> None:
        if not self._is_clients_fault(code):
            self._add(RequestOutcome(self._clock_ns(), service_class))

    def retarget(self, service_class: str, before: Targets, after: Targets) -> None:
        """From now on. Those of the window that had the class's targets are judged anew; the totals stay as
        they were counted."""
        for window in (self.all, self.by_class[service_class]):
            window.judge_anew(service_class, before, after)

    def snapshot(self, targets: Callable[[str], Targets]) -> SloState:
        """`targets`: in force for a class."""
        window_s = self.slo.window_s
        classes: dict[str, ClassLevels] = {
            name: {"targets": targets(name).to_wire(), **window.snapshot(window_s)}
            for name, window in self.by_class.items()
        }
        return {"targets": self.slo.to_wire(), **self.all.snapshot(window_s), "classes": classes}

    def _add(self, outcome: RequestOutcome) -> None:
        self.all.add(outcome)
        self.by_class[outcome.service_class].add(outcome)


class SloWindow:
    """Outcomes of the last seconds, and totals of all of them."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.num_judged = 0
        self.num_met = 0
        self._clock_ns = clock_ns
        self._began_ns = clock_ns()
        self._outcomes: deque[RequestOutcome] = deque()
        self._num_met_in_window = 0
        self._ttfts_ms: list[float] = []
        self._tpots_ms: list[float] = []
        self._itls_ms: list[float] = []
        """Of the window's outcomes, rising: kept so, since a dashboard asks several times a second."""

    def judge_anew(self, service_class: str, before: Targets, after: Targets) -> None:
        """Those of the class that were judged by `before`."""
        for idx, outcome in enumerate(self._outcomes):
            if outcome.service_class == service_class and outcome.targets == before:
                self._outcomes[idx] = outcome.judged(after)
        self._num_met_in_window = sum(outcome.met for outcome in self._outcomes)

    def snapshot(self, window_s: float) -> Levels:
        """Percentiles are None without a request in the window, and so is attainment."""
        now_ns = self._clock_ns()
        self._forget(now_ns - window_s * 1e9)
        num, num_met = len(self._outcomes), self._num_met_in_window
        return {
            "requests": num,
            "attainment": num_met / num if num else None,
            "goodput_rps": num_met / self._span_s(now_ns, window_s),
            "ttft_ms": _percentiles(self._ttfts_ms),
            "tpot_ms": _percentiles(self._tpots_ms),
            "itl_ms": _percentiles(self._itls_ms),
        }

    def add(self, outcome: RequestOutcome) -> None:
        if len(self._outcomes) == MAX_OUTCOMES:
            self._drop_oldest()
        self._outcomes.append(outcome)
        for ordered, value in self._ordered(outcome):
            insort(ordered, value)
        self._num_met_in_window += outcome.met
        self.num_judged += 1
        self.num_met += outcome.met

    def _forget(self, start_ns: float) -> None:
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
        if outcome.itl_ms is not None:
            yield self._itls_ms, outcome.itl_ms

    def _span_s(self, now_ns: int, window_s: float) -> float:
        """The time the outcomes cover: shorter than the window in a young daemon or a full deque."""
        full = len(self._outcomes) == MAX_OUTCOMES
        began_ns = self._outcomes[0].at_ns if full else self._began_ns
        return min(window_s, max((now_ns - began_ns) / 1e9, 1.0))


def _keeps(value_ms: float | None, target_ms: float | None) -> bool:
    return value_ms is None or target_ms is None or value_ms <= target_ms


def _percentiles(ordered: Sequence[float]) -> Percentiles:
    return {"p50": percentile(ordered, 50), "p90": percentile(ordered, 90), "p99": percentile(ordered, 99)}
