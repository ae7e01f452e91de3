"""The fixed split with lending: a lane without work lends all its units to the other."""

from semipd.core.errors import SemipdError
from semipd.core.split import Split


def choose_split(table: tuple[Split, ...], prefill_units: int, unit: str) -> Split:
    """The split that holds while both lanes are busy. `prefill_units` 0 asks for half.

    Raises SemipdError(`impossible_split`) naming the possible ones.
    """
    if prefill_units == 0:
        half = sum(table[0]) / 2
        return min(table, key=lambda split: (abs(split.prefill_units - half), split.prefill_units))
    for split in table:
        if split.prefill_units == prefill_units:
            return split
    possible = ", ".join(str(split.prefill_units) for split in table)
    raise SemipdError(
        "impossible_split",
        f"engine.prefill_units = {prefill_units} is impossible; this device offers {possible} ({unit}s).",
        "Choose one of them, or 0 for half.",
        param="engine.prefill_units",
    )


class Lending:
    """Chooses the split of the next step from which lanes have work."""

    def __init__(self, shared: Split, solo_prefill: Split, solo_decode: Split) -> None:
        self.shared = shared
        self._solo_prefill = solo_prefill
        self._solo_decode = solo_decode

    def split(self, prefill_busy: bool, decode_busy: bool) -> Split:
        if prefill_busy and decode_busy:
            return self.shared
        return self._solo_prefill if prefill_busy else self._solo_decode
