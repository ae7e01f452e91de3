"""semipd-top whose terminal is closed from outside, without a SIGHUP that would end it."""

import os
import pty
import signal
import subprocess
import sys

from support.eventually import LIMIT_S

from semipd.command_line.exit_codes import DONE

IGNORING_SIGHUP = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from semipd_top.cli import main
sys.exit(main())
"""


def test_the_dashboard_ends_with_its_terminal() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IGNORING_SIGHUP, "--demo"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        seen = b""
        while b"Quit" not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        assert process.wait(LIMIT_S) == DONE
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
