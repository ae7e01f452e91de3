"""Which splits a device offers, and how a request becomes one of them."""

from dataclasses import dataclass

from semipd.core.errors import SemipdError
from semipd.core.split import Split


@dataclass(frozen=True, slots=True)
class SplitTable:
    """`splits` have both lanes non-empty, by rising decode share; empty: the device cannot be divided."""

    splits: tuple[Split, ...]
    solo_prefill: Split
    solo_decode: Split
    num_units: int
    unit: str

    def nearest(self, *, prefill_units: int | None = None, decode_units: int | None = None) -> Split:
        """The split closest to what is asked for; of two equally close ones that with more prefill units.

        One number is enough; two must add up to the whole device. A request that leaves a lane without
        units is refused, not rounded: idle units are lent anyway, and a lane without any would starve.
        Raises SemipdError(`impossible_split`) with the table of possible splits.
        """
        if not self.splits:
            raise self._refusal(f"This device cannot be divided: it has {self.num_units} {self.unit}(s).")
        wanted = self._wanted_prefill(prefill_units, decode_units)
        if not 0 < wanted < self.num_units:
            raise self._refusal(
                f"{wanted} of {self.num_units} {self.unit}s for prefill leaves one lane without any."
            )
        return min(self.splits, key=lambda split: (abs(split.prefill_units - wanted), -split.prefill_units))

    def half(self) -> Split:
        """The most even split. The table must not be empty."""
        return self.nearest(prefill_units=self.num_units // 2)

    def _wanted_prefill(self, prefill_units: int | None, decode_units: int | None) -> int:
        if prefill_units is None and decode_units is None:
            raise self._refusal("A fixed split needs prefill_units or decode_units.")
        if prefill_units is None:
            assert decode_units is not None
            return self.num_units - decode_units
        if decode_units is not None and prefill_units + decode_units != self.num_units:
            raise self._refusal(
                f"{prefill_units} + {decode_units} {self.unit}s are asked for; "
                f"the device has {self.num_units}, and the two lanes share all of them."
            )
        return prefill_units

    def _refusal(self, why: str) -> SemipdError:
        possible = ", ".join(map(str, self.splits)) or "none"
        hint = f"Possible splits (prefill+decode {self.unit}s): {possible}."
        return SemipdError("impossible_split", why, hint, param="prefill_units")
