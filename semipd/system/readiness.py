"""Waiting for file descriptors, whatever their numbers. `select` waits to the microsecond but knows no number
above 1,023; `poll` knows all of them and waits in whole milliseconds."""

import select
from collections.abc import Sequence

SELECT_FILES = 1024


def any_readable(fds: Sequence[int], limit_s: float) -> bool:
    """Whether one of them can be read, or has ended, within `limit_s`."""
    if max(fds) < SELECT_FILES:
        return bool(select.select(fds, [], [], limit_s)[0])
    return _poll(fds, select.POLLIN, limit_s)


def writable(fd: int, limit_s: float) -> bool:
    return _poll([fd], select.POLLOUT, limit_s)


def has_hung_up(fd: int) -> bool:
    """The peer of a socket has closed both directions. A number that is none any more counts, too."""
    return fd < 0 or _poll([fd], 0, 0.0)


def _poll(fds: Sequence[int], events: int, limit_s: float) -> bool:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, events)
    return bool(poll.poll(max(limit_s, 0.0) * 1e3))
