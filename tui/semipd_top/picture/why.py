"""Why a target is missed: where late requests spent their time, from the requests at hand. Pure."""

from collections.abc import Iterable

from semipd.core.state.requests import RequestRow
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import Line, Span, line
from semipd_top.text.numbers import count, latency


def late_line(picture: Picture, ttft_ms: float, window_s: float) -> Line | None:
    """Of requests whose TTFT missed its target: mean time in the queue and in prefill. None: none at hand."""
    late = [
        row for row in _recent(picture, window_s) if row["ttft_ms"] is not None and row["ttft_ms"] > ttft_ms
    ]
    queue_ms, prefill_ms = _mean(row["queue_ms"] for row in late), _mean(row["prefill_ms"] for row in late)
    if queue_ms is None or prefill_ms is None:
        return None
    return line(
        Span(f"{count(len(late))} late: ", "bad"),
        f"queued {latency(queue_ms)}, prefill {latency(prefill_ms)}",
    )


def slow_line(picture: Picture, tpot_ms: float, window_s: float) -> Line | None:
    """Of requests whose TPOT missed its target: how many were preempted, beside what a decode step takes."""
    slow = [
        row for row in _recent(picture, window_s) if row["tpot_ms"] is not None and row["tpot_ms"] > tpot_ms
    ]
    if not slow:
        return None
    num_preempted = sum(row["preemptions"] > 0 for row in slow)
    step_ms = picture.samples[-1].decode.step_ms if picture.samples else None
    return line(
        Span(f"{count(len(slow))} slow: ", "bad"),
        f"{count(num_preempted)} preempted, steps {latency(step_ms)}",
    )


def _recent(picture: Picture, window_s: float) -> list[RequestRow]:
    return [row for row in picture.requests if picture.now_s - row["arrived_at_s"] <= window_s]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
