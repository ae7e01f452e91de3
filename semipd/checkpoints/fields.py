"""Typed reading of a config.json, whose keys and types nobody has checked yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError

MOST = 2**31 - 1
LARGEST = 1e30
"""Bounds of numbers that have none of their own."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and the file it came from. A key set to null counts as absent.

    Every reader raises SemipdError(`checkpoint_corrupt`) naming file and key when the value is missing
    without a default, or has the wrong type.
    """

    data: dict[str, Any]
    path: Path
    prefix: str = ""

    def corrupt(self, what: str) -> SemipdError:
        return SemipdError("checkpoint_corrupt", f"{self.path}: {what}.", "Download or repair the file.")

    def number(
        self, key: str, default: float | None = None, *, minimum: float = 0.0, maximum: float = LARGEST
    ) -> float:
        """Above 0, too."""
        value = self._get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not _within(value, minimum, maximum)
        ):
            kind = f"a number from {minimum:g} to" if minimum else "a positive number of at most"
            raise self.corrupt(f"{self.prefix}{key} must be {kind} {maximum:g}, got {_shown(value)}")
        return float(value)

    def count(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MOST) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.corrupt(
                f"{self.prefix}{key} must be an integer from {minimum} to {maximum}, got {_shown(value)}"
            )
        return value

    def text(self, key: str) -> str:
        """Empty when it is absent."""
        value = self._get(key, "")
        if not isinstance(value, str):
            raise self.corrupt(f"{self.prefix}{key} must be a text, got {_shown(value)}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.corrupt(f"{self.prefix}{key} must be true or false, got {_shown(value)}")
        return value

    def _get(self, key: str, default: float | str | None) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.corrupt(f"{self.prefix}{key} is missing")
        return default


def _within(value: float, minimum: float, maximum: float) -> bool:
    return value > 0 and minimum <= value <= maximum


def _shown(value: object) -> str:
    try:
        return f"{value!r:.100}"
    except ValueError:  # an integer of thousands of digits
        return "an integer of thousands of digits"
