"""The policy `paper`: Algorithm 1 of semi-PD (arXiv 2504.19867, section 5) with Eq. 4.

    TTFT = a1 / (x - lambda) + b1      TPOT = a2 / y + b2      x, y: shares of prefill and decode, x + y = 1

What the paper leaves open, and what is done here:

* window: requests that finished under one split (latency_window.CLOSE_AFTER_REQUESTS); the paper gives none.
* step and bound: one entry of the split table, at most `MAX_STEPS` per window, as the released code; the
  pseudo-code never increments its step counter, here it does.
* x' is used before it is set in the pseudo-code; lanes are disjoint here, so x' = x / (x + y) = x.
* both targets missed: unchanged, as the text says; the pseudo-code would raise x.
* lambda = r l_100 (Eq. 3) is computed from the window's arrival rate and its mean prefill time, instead of
  being a fifth free parameter: 16 windows cannot tell it from b1. A share at or below lambda is unstable:
  its TTFT is infinite.
* a and b by non-negative least squares over the last windows. While they give one point only, the paper's
  published curves (0.6809, 0.022 and 0.6284, 0.3818) are scaled through it; with none (no stable window),
  no share is enough.
"""

import math
from collections.abc import Callable, Sequence

from semipd.core.slo import Slo
from semipd.core.split import PolicyName, Split
from semipd.partition.interface import ClosedWindow, Decision, Snapshot
from semipd.partition.step_times.nnls import solve_nonnegative

MAX_STEPS = 3
RIDGE = 1e-9
"""Against points that are equal up to rounding."""

PUBLISHED_TTFT = (0.6809, 0.022)
PUBLISHED_TPOT = (0.6284, 0.3818)

Estimate = Callable[[Split], float]
"""Milliseconds under a split."""


class PaperPolicy:
    name: PolicyName = "paper"
    per_window = True

    def decide(self, snapshot: Snapshot, slo: Slo) -> Decision:
        s = snapshot
        if not s.windows:
            return Decision(s.current, "no window of finished requests yet")
        last = s.windows[-1]
        ttft, tpot = _estimates(s)
        misses_ttft, misses_tpot = last.ttft_ms > slo.ttft_ms, last.tpot_ms > slo.tpot_ms
        seen = f"TTFT {last.ttft_ms:.0f} of {slo.ttft_ms:g} ms, TPOT {last.tpot_ms:.1f} of {slo.tpot_ms:g} ms"
        split, why = s.current, "both targets missed" if misses_ttft and misses_tpot else "both targets met"
        if misses_ttft and not misses_tpot:
            split = _raise(s, -1, lambda candidate: ttft(candidate) <= slo.ttft_ms)
            why = f"prefill {s.current.prefill_units} -> {split.prefill_units} {s.table.unit}s"
        elif misses_tpot and not misses_ttft:
            split = _raise(s, +1, lambda candidate: tpot(candidate) <= slo.tpot_ms)
            why = f"decode {s.current.decode_units} -> {split.decode_units} {s.table.unit}s"
        ttft_ms = ttft(split)
        predicted_ttft_ms = ttft_ms if math.isfinite(ttft_ms) else None
        return Decision(split, f"{seen}: {why}", 0, predicted_ttft_ms, tpot(split))


def _raise(s: Snapshot, direction: int, is_enough: Callable[[Split], bool]) -> Split:
    """Move along the table (rising decode share) until the estimate is enough, the bound or the end."""
    splits = s.table.splits
    idx = splits.index(s.current)
    for _ in range(MAX_STEPS):
        if not 0 <= idx + direction < len(splits):
            break
        idx += direction
        if is_enough(splits[idx]):
            break
    return splits[idx]


def _estimates(s: Snapshot) -> tuple[Estimate, Estimate]:
    num_units, last = s.table.num_units, s.windows[-1]
    load = last.arrivals_per_s * last.full_prefill_s

    def queueing(split: Split, window: ClosedWindow | None = None) -> float:
        """1 / (x - lambda)."""
        at = load if window is None else window.arrivals_per_s * window.full_prefill_s
        spare = split.prefill_units / num_units - at
        return 1 / spare if spare > 0 else math.inf

    stable = [w for w in s.windows if queueing(w.split, w) != math.inf]
    a1, b1 = _fit([(queueing(w.split, w), w.ttft_ms) for w in stable], PUBLISHED_TTFT)
    a2, b2 = _fit([(num_units / w.split.decode_units, w.tpot_ms) for w in s.windows], PUBLISHED_TPOT)
    return (
        lambda split: a1 * queueing(split) + b1,
        lambda split: a2 * num_units / split.decode_units + b2,
    )


def _fit(points: Sequence[tuple[float, float]], published: tuple[float, float]) -> tuple[float, float]:
    """(a, b) of y = a x + b, both non-negative; see the module's last point for few points."""
    if not points:
        return math.inf, 0.0
    a, b = published
    if len({x for x, _ in points}) < 2:
        x, y = points[-1]
        scale = y / (a * x + b)
        return a * scale, b * scale
    sum_x, sum_y = sum(x for x, _ in points), sum(y for _, y in points)
    sum_xx, sum_xy = sum(x * x for x, _ in points), sum(x * y for x, y in points)
    gram = [[sum_xx * (1 + RIDGE), sum_x], [sum_x, len(points) * (1 + RIDGE)]]
    a, b = solve_nonnegative(gram, [sum_xy, sum_y], [0.0, 0.0])
    return a, b
