"""Opening files where others may have put something in their place: a link, a pipe, a file of their own.

Everything here raises OSError; its `strerror` completes "the file cannot be used: ...".
"""

import errno
import os
import stat
from pathlib import Path

_DEVICE_FOLDERS = frozenset({"/dev", "/dev/fd", "/dev/pts", "/proc/self/fd"})
"""Only the system puts names there, so their links are followed: /dev/stdout is one."""

_WHAT_IT_IS = {
    errno.ELOOP: "it is a symbolic link; name the file itself",
    errno.ENXIO: "it is no regular file",  # a pipe that nobody reads, a socket
}

_MAX_LINKS = 40
"""As many as the kernel follows."""


def open_safely(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the regular file at `path`, which is ours or root's. Never waits, as for a pipe."""
    refuse_planted_links(path.parent)
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if reason := _WHAT_IT_IS.get(error.errno or 0):
            raise _refusal(reason) from error
        raise
    try:
        _check(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """With what is missing above it; new folders are ours alone."""
    refuse_planted_links(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_log(path: Path) -> int:
    """A descriptor to append to: of a file that is made when it is missing, or of a device of the system,
    such as /dev/stdout."""
    if not is_device(path):
        return open_safely(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
    if stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refusal("it is a disk")
    return descriptor


def is_device(path: Path) -> bool:
    return os.path.dirname(os.path.abspath(path)) in _DEVICE_FOLDERS  # noqa: PTH100, PTH120 (follow nothing)


def refuse_planted_links(path: Path) -> None:
    """Raises when a symbolic link on the way to `path`, or there, belongs neither to us nor to root. What
    is missing is nobody's."""
    place, todo, num_links = Path("/"), list(path.absolute().parts[1:]), 0
    while todo:
        place = place.parent if (part := todo.pop(0)) == ".." else place / part
        try:
            found = place.lstat()
        except OSError:
            return
        if stat.S_ISLNK(found.st_mode):
            _check_link(place, found, num_links := num_links + 1)
            target = place.readlink()
            todo = [*(target.parts[1:] if target.is_absolute() else target.parts), *todo]
            place = Path("/") if target.is_absolute() else place.parent


def _check_link(place: Path, found: os.stat_result, num_links: int) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise _refusal(f"{place} is a symbolic link of user {found.st_uid}")
    if num_links > _MAX_LINKS:
        raise _refusal(f"more than {_MAX_LINKS} symbolic links lead to it")


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refusal("it is no regular file")
    if found.st_uid not in (os.geteuid(), 0):
        raise _refusal(f"it belongs to user {found.st_uid}, not to user {os.geteuid()}")


def _refusal(reason: str) -> OSError:
    return OSError(errno.EPERM, reason)
