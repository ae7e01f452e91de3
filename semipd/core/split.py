"""How the device's units (SMs or cores) are divided between the two lanes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

LaneName = Literal["prefill", "decode"]
PartitionMode = Literal["auto", "fixed", "off"]
PolicyName = Literal["predictive", "paper"]

Units = Sequence[int]
"""A split as documents show it: [prefill units, decode units]."""

MAX_EXPIRY_S = 30 * 24 * 3600.0
"""An override with an end lasts at most so long."""


class Split(NamedTuple):
    """Units of each lane. A solo split gives one lane everything and the other nothing."""

    prefill_units: int
    decode_units: int

    def units_of(self, lane: LaneName) -> int:
        return self.prefill_units if lane == "prefill" else self.decode_units

    @property
    def is_solo(self) -> bool:
        return self.prefill_units == 0 or self.decode_units == 0

    def __str__(self) -> str:
        return f"{self.prefill_units}+{self.decode_units}"
