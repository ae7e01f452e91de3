"""Who gives up blocks when the pool is full."""

from collections.abc import Iterable

from semipd.sched.sequence import Sequence


def choose_victim(running: Iterable[Sequence]) -> Sequence | None:
    """The latest arrival, delays included, partly prefilled ones too; never the oldest, so that work
    progresses.

    None when there is nobody but the oldest.
    """
    by_age = sorted(running, key=lambda s: s.age_key)
    return by_age[-1] if len(by_age) > 1 else None
