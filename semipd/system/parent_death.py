"""A child never outlives its parent: the first call in every child's main."""

import ctypes
import os
import select
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
HANGUP_GRACE_S = 1.5
"""From the end of the link to the end of the process: an orderly end takes less."""


def die_with_parent(parent_pid: int, link_fd: int | None = None) -> None:
    """Ask the kernel for SIGKILL when the parent goes, then check that it has not gone already.

    The signal follows the *thread* that spawned us, so parents spawn from their main thread. The second line
    of defence is the link to the parent, if there is one: when that hangs up, a thread ends the process,
    whatever else it does.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    if link_fd is not None:
        _watch(link_fd)


def _watch(link_fd: int) -> None:
    threading.Thread(target=_exit_at_hangup, args=(link_fd,), name="parent-death", daemon=True).start()


def _exit_at_hangup(link_fd: int) -> None:
    link = select.poll()
    link.register(link_fd, select.POLLHUP | select.POLLRDHUP)
    link.poll()
    time.sleep(HANGUP_GRACE_S)
    os._exit(1)
