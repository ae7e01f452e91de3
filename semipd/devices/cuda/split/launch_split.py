"""Under which split a lane launches its next piece of work. Pure."""

from collections.abc import Iterable

from semipd.core.split import LaneName, Split


def split_to_use(
    lane: LaneName, wanted: Split, current: Split, held_by_other: Iterable[int], num_units: int
) -> Split:
    """`wanted`, unless the other lane still works on units of it: then `current`, if that one is free.

    `held_by_other`: units under which the other lane's unfinished work was launched. So the lane that grows
    waits on its old units, without stopping, until the lane that shrinks has moved. If neither is free the
    lanes share SMs until then: contention, never an error.
    """
    free = num_units - max(held_by_other, default=0)
    if wanted.units_of(lane) > free and 0 < current.units_of(lane) <= free:
        return current
    return wanted
