"""Typed reading of a config.json, whose keys and types nobody has checked yet."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError


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

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.corrupt(f"{self.prefix}{key} must be a positive number, got {value!r}")
        return float(value)

    def count(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.corrupt(f"{self.prefix}{key} must be an integer of at least {minimum}, got {value!r}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.corrupt(f"{self.prefix}{key} must be true or false, got {value!r}")
        return value

    def _get(self, key: str, default: float | None) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.corrupt(f"{self.prefix}{key} is missing")
        return default
