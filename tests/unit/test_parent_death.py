"""Children that are busy, and deaf to the kernel's death signal, still notice that their parent is gone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.eventually import eventually_now

from semipd.system.parent_death import HANGUP_GRACE_S

ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

BUSY = """
import ctypes, os, sys, time
from semipd.system.parent_death import die_with_parent
die_with_parent(int(sys.argv[1]), int(sys.argv[2]))
libc = ctypes.CDLL(None)
signal = ctypes.c_int()
libc.prctl(2, ctypes.byref(signal), 0, 0, 0)
libc.prctl(1, 0, 0, 0, 0)
print(signal.value, flush=True)
time.sleep(600)
"""


def spawn(parent_pid: int) -> tuple["subprocess.Popen[str]", socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(parent_pid), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            env=ENV,
        )
    return process, ours


def test_a_busy_child_ends_when_its_link_does() -> None:
    process, link = spawn(os.getpid())
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == f"{int(signal.SIGKILL)}\n", "the kernel was not asked"
        assert process.poll() is None
        link.send(b"messages are no hang-up")
        link.close()
        eventually_now(lambda: process.poll() is not None, "the child ends", HANGUP_GRACE_S + 20)
    assert process.returncode == 1


def test_a_child_whose_parent_has_gone_already_does_nothing() -> None:
    process, link = spawn(parent_pid=1 if os.getpid() != 1 else 2)
    with process, link:
        out, _ = process.communicate(timeout=40)
    assert (process.returncode, out) == (1, "")
