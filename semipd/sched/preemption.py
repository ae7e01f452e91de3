"""Who gives up blocks when the pool is full."""

from collections.abc import Iterable

from semipd.sched.sequence import Sequence


def choose_victim(running: Iterable[Sequence]) -> Sequence | None:
    """The latest arrival, partly prefilled ones too, of the background if anybody of it runs; never the
    oldest, so that work progresses.

    None when there is nobody but the oldest.
    """
    _oldest, *others = sorted(running, key=lambda s: s.age_key)
    return max(others, key=lambda s: (s.in_background, s.age_key), default=None)
