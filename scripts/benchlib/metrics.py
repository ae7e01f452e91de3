"""From records to the figures people compare: percentiles, throughput, attainment, goodput."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchlib.load.records import Record


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in milliseconds. A request meets them when neither figure is above its target."""

    ttft_ms: float
    tpot_ms: float

    def met_by(self, record: Record) -> bool:
        """False for whatever did not end well. A request of one token has no TPOT and passes it."""
        ttft_s, tpot_s = record.ttft_s, record.tpot_s
        if record.outcome != "ok" or ttft_s is None:
            return False
        return ttft_s * 1e3 <= self.ttft_ms and (tpot_s is None or tpot_s * 1e3 <= self.tpot_ms)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of `count` values in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run. Latencies and token counts are of the requests that ended well.

    Attributes:
        arrived: requests sent, without those that the generator cancelled.
        attainment_frac: of the arrived ones, those that met the SLO; None when nothing arrived.
        goodput_rps: requests that met the SLO, per second of the run.
        short: requests that ended well with another number of tokens than asked.
        without_usage: requests whose tokens had to be counted by stream events.
    """

    duration_s: float
    sent: int
    arrived: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    events: int
    short: int
    without_usage: int
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    slo: Slo
    attainment_frac: float | None
    goodput_rps: float
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    send_lag_ms: Distribution | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantile(ordered: Sequence[float], frac: float) -> float:
    """The value at `frac` (0-1) of sorted values, interpolated linearly between its two neighbours."""
    assert ordered, "quantile of nothing"
    position = (len(ordered) - 1) * frac
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution_ms(seconds: Iterable[float | None]) -> Distribution | None:
    """None when there is no value."""
    ordered = sorted(value * 1e3 for value in seconds if value is not None)
    if not ordered:
        return None
    p50, p90, p99 = (quantile(ordered, frac) for frac in (0.5, 0.9, 0.99))
    return Distribution(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def summarize(records: Sequence[Record], duration_s: float, slo: Slo) -> Summary:
    """`duration_s`: from the start of the run to the end of its last request, above zero."""
    ok = [record for record in records if record.outcome == "ok"]
    arrived = sum(record.outcome != "cancelled" for record in records)
    met = sum(map(slo.met_by, records))
    prompt_tokens = sum(record.prompt_tokens for record in ok)
    output_tokens = sum(record.output_tokens for record in ok)
    return Summary(
        duration_s=duration_s,
        sent=len(records),
        arrived=arrived,
        outcomes=dict(Counter(record.outcome for record in records)),
        errors=dict(Counter(record.code for record in records if record.code).most_common()),
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(record.cached_tokens for record in ok),
        output_tokens=output_tokens,
        events=sum(len(record.event_times_s) for record in ok),
        short=sum(record.output_tokens != record.asked_output_tokens for record in ok),
        without_usage=sum(not record.has_usage for record in ok),
        requests_per_s=len(ok) / duration_s,
        prompt_tokens_per_s=prompt_tokens / duration_s,
        output_tokens_per_s=output_tokens / duration_s,
        slo=slo,
        attainment_frac=met / arrived if arrived else None,
        goodput_rps=met / duration_s,
        ttft_ms=distribution_ms(record.ttft_s for record in ok),
        tpot_ms=distribution_ms(record.tpot_s for record in ok),
        itl_ms=distribution_ms(gap for record in ok for gap in record.itl_s),
        e2e_ms=distribution_ms(record.e2e_s for record in ok),
        send_lag_ms=distribution_ms(record.send_lag_s for record in records),
    )
