"""Service-level objective: what a request's latencies are measured against."""

from dataclasses import dataclass

from semipd.core.ranges import Range
from semipd.core.state.partition import SloTargets

SLO_BOUNDS = {
    "ttft_ms": Range(0.001, 1e9),
    "tpot_ms": Range(0.001, 1e9),
    "percentile": Range(1.0, 100.0),
    "window_s": Range(1.0, 86400.0),
}
"""On every way to set a target."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets: `percentile` (0-100) of the requests of the last `window_s` seconds shall have a TTFT and
    a TPOT of at most these."""

    ttft_ms: float
    tpot_ms: float
    percentile: float
    window_s: float

    def to_wire(self) -> SloTargets:
        return {
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "percentile": self.percentile,
            "window_s": self.window_s,
        }
