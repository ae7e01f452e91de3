"""Tiny models run faster on one thread, and the machine's other cores belong to the processes under test.
Daemons under test keep what they learn to themselves, not in the user's state folder."""

import atexit
import os
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

_state = tempfile.TemporaryDirectory(prefix="semipd-tests-")
atexit.register(_state.cleanup)
os.environ["XDG_STATE_HOME"] = _state.name

# A shell starts background jobs with SIGINT ignored, and children would inherit that: no Ctrl-C for them.
signal.signal(signal.SIGINT, signal.default_int_handler)
