"""Tiny models run faster on one thread, and the machine's other cores belong to the processes under test.
Daemons under test keep what they learn to themselves, not in the user's state folder."""

import atexit
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

_state = tempfile.TemporaryDirectory(prefix="semipd-tests-")
atexit.register(_state.cleanup)
os.environ["XDG_STATE_HOME"] = _state.name

# A shell starts background jobs with SIGINT ignored, and children would inherit that: no Ctrl-C for them.
signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup does the same with SIGHUP
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FIRST = ("test_terminal.py", "test_worker_restart_cpu.py", "test_resume_cpu.py", "test_cpu_device.py")
"""Files that take longest: begun last, one of them would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Signals are left as they were: the next test's children would inherit what is ignored or held."""
    yield
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.getsignal(signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert not held, f"{item.nodeid} leaves signals held: {held}"
    assert handler is signal.default_int_handler, f"{item.nodeid} leaves SIGINT to {handler}"
