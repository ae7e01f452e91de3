"""A small world for partition tests: 16 units, step times that are known exactly."""

from dataclasses import dataclass, replace
from typing import Any

from semipd.core.slo import Slo
from semipd.core.split import Split
from semipd.partition.interface import Line, Snapshot, Streams, WaitingPrompt
from semipd.partition.table import SplitTable

NUM_UNITS = 16
SPLITS = tuple(Split(NUM_UNITS - n, n) for n in range(1, NUM_UNITS))
TABLE = SplitTable(SPLITS, Split(NUM_UNITS, 0), Split(0, NUM_UNITS), NUM_UNITS, "unit")


@dataclass(frozen=True)
class KnownTimes:
    """Prefill scales with its units; decode has a part that does and a part that does not.

    `tried`: the smallest units both lanes have run on; None: none.
    """

    prefill_us: float = 100.0  # per token on one unit
    decode_fixed_ms: float = 4.0
    decode_shared_ms: float = 24.0  # on one unit
    per_sequence_ms: float = 0.1  # on one unit
    merged_ms: float = 1e9
    merged_token_ms: float = 0.0
    confident: bool = True
    tried: int | None = 1

    def prefill(self, units: int) -> Line:
        return Line(1.0, self.prefill_us / 1e3 / units, 0.0)

    def decode(self, units: int) -> Line:
        return Line(
            self.decode_fixed_ms + self.decode_shared_ms / units, self.per_sequence_ms / units, 0.001 / units
        )

    def merged(self, num_decodes: float, context_tokens: float) -> Line:
        return Line(self.merged_ms, self.merged_token_ms, 0.0)

    def smallest_tried(self, lane: str) -> int | None:
        return self.tried


def snapshot(**fields: Any) -> Snapshot:
    """Every sequence that decodes is exactly in time unless `streams` says otherwise."""
    base = Snapshot(
        now_ns=0,
        table=TABLE,
        start=Split(8, 8),
        current=Split(8, 8),
        times=KnownTimes(),
        num_decodes=10,
        context_tokens=1000,
        chunk_tokens=100,
    )
    found = replace(base, **fields)
    return found if "streams" in fields else replace(found, streams=streams(found.num_decodes))


def prompts(*lengths: int, age_ms: float = 0.0) -> tuple[WaitingPrompt, ...]:
    """Due when they are as old as the SLO's target."""
    return tuple(WaitingPrompt(length, 0, age_ms, SLO.ttft_ms - age_ms) for length in lengths)


def streams(num: int, slack_ms: float = 0.0, itl_ms: float | None = None) -> tuple[Streams, ...]:
    return (Streams(SLO.tpot_ms, itl_ms, (slack_ms,) * num),)


SLO = Slo(ttft_ms=500.0, tpot_ms=20.0, percentile=90.0, window_s=60.0)
