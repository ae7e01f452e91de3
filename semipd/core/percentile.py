"""Percentiles by nearest rank, as the SLO, status and policies use them."""

from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")


def percentile(ordered: Sequence[Value], pct: float) -> Value | None:
    """The smallest of `ordered` (rising) that at least `pct` percent do not exceed; None: there is none."""
    if not ordered:
        return None
    rank = -(-len(ordered) * pct // 100)
    return ordered[max(int(rank), 1) - 1]
