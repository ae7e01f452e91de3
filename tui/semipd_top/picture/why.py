"""Why a target is missed: where late requests spent their time, from the requests at hand. Pure."""

from collections.abc import Iterable

from semipd.core.state.partition import SloTargets, TargetsDocument
from semipd.core.state.requests import RequestRow
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import Line, Span, line
from semipd_top.text.numbers import count, latency


def late_line(picture: Picture, targets: SloTargets) -> Line | None:
    """Of requests whose TTFT missed its target: mean time in the queue and in prefill. None: none at hand.
    `targets`: of rows that say none."""
    late = [row for row in _recent(picture, targets["window_s"]) if is_late(row, row.get("targets", targets))]
    queue_ms, prefill_ms = _mean(row["queue_ms"] for row in late), _mean(row["prefill_ms"] for row in late)
    if queue_ms is None or prefill_ms is None:
        return None
    return line(
        Span(f"{count(len(late))} late: ", "bad"),
        f"queued {latency(queue_ms)}, prefill {latency(prefill_ms)}",
    )


def slow_line(picture: Picture, targets: SloTargets) -> Line | None:
    """Of requests whose TPOT or inter-token times missed their target: how many were preempted, beside what a
    decode step takes. `targets`: of rows that say none."""
    slow = [row for row in _recent(picture, targets["window_s"]) if is_slow(row, row.get("targets", targets))]
    if not slow:
        return None
    num_preempted = sum(row["preemptions"] > 0 for row in slow)
    step_ms = picture.samples[-1].decode.step_ms if picture.samples else None
    return line(
        Span(f"{count(len(slow))} slow: ", "bad"),
        f"{count(num_preempted)} preempted, steps {latency(step_ms)}",
    )


def is_late(row: RequestRow, targets: TargetsDocument) -> bool:
    """Its first token came after its target; 0: there is none."""
    uncached = row["prompt_tokens"] - row["cached_tokens"]
    limit_ms = targets["ttft_ms"] + targets.get("ttft_ms_per_1k_tokens", 0.0) * uncached / 1000
    return bool(targets["ttft_ms"]) and (row["ttft_ms"] or 0.0) > limit_ms


def is_slow(row: RequestRow, targets: TargetsDocument) -> bool:
    """Its tokens came too far apart, on average or too many of them."""
    return _is_over(row["tpot_ms"], targets["tpot_ms"]) or _is_over(
        row.get("itl_ms"), targets.get("itl_ms", 0.0)
    )


def _is_over(value_ms: float | None, target_ms: float) -> bool:
    """`target_ms` 0: there is none."""
    return value_ms is not None and 0 < target_ms < value_ms


def _recent(picture: Picture, window_s: float) -> list[RequestRow]:
    return [row for row in picture.requests if picture.now_s - row["arrived_at_s"] <= window_s]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
