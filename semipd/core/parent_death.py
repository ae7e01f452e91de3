"""A child never outlives its parent: the first call in every child's main."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes, then check that it has not gone already.

    The signal follows the *thread* that spawned us, so parents spawn from their main thread.
    End-of-file on the inherited socket is the second line of defence.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
