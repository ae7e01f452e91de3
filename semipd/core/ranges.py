"""Ranges of numbers: stated once, and used by every check, schema and message."""

from typing import NamedTuple


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included; with `above_low` only those above `low`."""

    low: float
    high: float
    above_low: bool = False

    def holds(self, value: float) -> bool:
        """Never true of NaN."""
        return (self.low < value if self.above_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low, high = _shown(self.low), _shown(self.high)
        return f"above {low}, at most {high}" if self.above_low else f"{low} to {high}"


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
