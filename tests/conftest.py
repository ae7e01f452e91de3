"""Tiny models run faster on one thread, and the machine's other cores belong to the processes under test."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Daemons under test learn step times; those belong into nobody's home.
_state = tempfile.TemporaryDirectory(prefix="semipd-tests-")
os.environ["XDG_STATE_HOME"] = _state.name


def pytest_unconfigure() -> None:
    _state.cleanup()
