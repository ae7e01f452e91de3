"""Service-level objectives: what requests' latencies are measured against."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from semipd.core.ranges import Range
from semipd.core.state.partition import SloTargets, TargetsDocument

SLO_BOUNDS = {
    "ttft_ms": Range(0.001, 1e9),
    "ttft_ms_per_1k_tokens": Range(0.0, 1e9),
    "tpot_ms": Range(0.001, 1e9),
    "itl_ms": Range(0.0, 1e9),
    "itl_percentile": Range(1.0, 100.0),
    "percentile": Range(1.0, 100.0),
    "window_s": Range(1.0, 86400.0),
}
"""On every way to set the service levels of the daemon, which are the targets of the class `default`."""

TARGET_BOUNDS = {name: Range(0.0, 1e9) for name in ("ttft_ms", "ttft_ms_per_1k_tokens", "tpot_ms", "itl_ms")}
"""Of a request's targets and of another class's; 0: no target."""


DEFAULT_CLASS = "default"
"""Class of requests that ask for none; its targets are those of the section [slo]."""

BATCH_CLASS = "batch"
"""Class of requests that may wait. It exists always, and has no targets unless it is configured."""


ITL_PERCENTILE = 99.0
"""Of a request's own inter-token times, where no setting says another one."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What one request is measured by, in milliseconds. None: no target, every value meets it.

    Attributes:
        ttft_ms: from arrival at the daemon to the first token.
        ttft_ms_per_1k_tokens: what is added to it for each 1,000 prompt tokens that are not cached.
        tpot_ms: mean time per further token, (last - first) / (tokens - 1).
        itl_ms: percentile (`slo.itl_percentile`) of the times between two tokens of the request.
    """

    ttft_ms: float | None = None
    ttft_ms_per_1k_tokens: float = 0.0
    tpot_ms: float | None = None
    itl_ms: float | None = None

    @classmethod
    def of(cls, numbers: Mapping[str, float], base: "Targets | None" = None) -> "Targets":
        """`numbers`: some of its fields, 0 for no target; the others are `base`'s."""
        return replace(base or cls(), **{name: numbers[name] or _NOTHING[name] for name in numbers})

    def to_wire(self) -> TargetsDocument:
        return {
            "ttft_ms": self.ttft_ms or 0.0,
            "ttft_ms_per_1k_tokens": self.ttft_ms_per_1k_tokens,
            "tpot_ms": self.tpot_ms or 0.0,
            "itl_ms": self.itl_ms or 0.0,
        }

    def ttft_limit_ms(self, uncached_tokens: int) -> float:
        """Most time to the first token; infinite without a target."""
        if self.ttft_ms is None:
            return math.inf
        return self.ttft_ms + self.ttft_ms_per_1k_tokens * uncached_tokens / 1000

    def __str__(self) -> str:
        """TTFT/TPOT in milliseconds, and the inter-token target behind them if there is one: 300/150 ms."""
        if self == NO_TARGETS:
            return "no targets"
        growth = f"+{self.ttft_ms_per_1k_tokens:g}/1k" if self.ttft_ms_per_1k_tokens else ""
        itl = "" if self.itl_ms is None else f"/{self.itl_ms:g}"
        return f"{_shown(self.ttft_ms)}{growth}/{_shown(self.tpot_ms)}{itl} ms"

    def due_ns(self, arrival_ns: int, uncached_tokens: int) -> int | None:
        """When the first token must be there, on the clock of `arrival_ns`; None: whenever."""
        if self.ttft_ms is None:
            return None
        return arrival_ns + int(self.ttft_limit_ms(uncached_tokens) * 1e6)


NO_TARGETS = Targets()
_NOTHING: dict[str, Any] = asdict(NO_TARGETS)


def _shown(target_ms: float | None) -> str:
    return "-" if target_ms is None else f"{target_ms:g}"


def most_slow_gaps(num_gaps: int, pct: float) -> int:
    """So many of a request's inter-token times may exceed its target while their percentile (nearest rank,
    core.percentile) does not. So two counts judge a request exactly, however long its answer is."""
    return num_gaps - max(int(-(-num_gaps * pct // 100)), min(num_gaps, 1))


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets of the class `default`: `percentile` (0-100) of the requests of the last `window_s` seconds
    shall meet them. `itl_ms` 0: no target. `itl_percentile`: of a request's own inter-token times, in every
    class."""

    ttft_ms: float
    tpot_ms: float
    percentile: float
    window_s: float
    ttft_ms_per_1k_tokens: float = 0.0
    itl_ms: float = 0.0
    itl_percentile: float = ITL_PERCENTILE

    @property
    def targets(self) -> Targets:
        """Of one request of that class."""
        return Targets(self.ttft_ms, self.ttft_ms_per_1k_tokens, self.tpot_ms, self.itl_ms or None)

    def to_wire(self) -> SloTargets:
        return {
            "ttft_ms": self.ttft_ms,
            "ttft_ms_per_1k_tokens": self.ttft_ms_per_1k_tokens,
            "tpot_ms": self.tpot_ms,
            "itl_ms": self.itl_ms,
            "itl_percentile": self.itl_percentile,
            "percentile": self.percentile,
            "window_s": self.window_s,
        }
