"""How child processes are born: what they may import, and which signals wait for them."""

import signal
import subprocess
import sys

import pytest

from semipd.system.children import (
    HELD_SIGNALS,
    IGNORED_SIGNALS,
    ignore_signals,
    release_signals,
    signals_held,
)

LISTEN = """
import signal, sys
from semipd.system.children import release_signals
for number in (signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: print(number, flush=True))
print("born", flush=True)
sys.stdin.readline()
release_signals()
print("done", flush=True)
"""


def test_a_signal_waits_until_a_child_listens() -> None:
    """One that comes before would end it."""
    with signals_held():
        child = subprocess.Popen(
            [sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    for number in HELD_SIGNALS:
        child.send_signal(number)
    said, _ = child.communicate("go\n", timeout=60)
    assert said.split() == ["born", *sorted(str(int(number)) for number in HELD_SIGNALS), "done"]
    assert child.returncode == 0


def test_the_mask_is_as_before() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with signals_held():
        assert set(HELD_SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
        release_signals()
        assert not set(HELD_SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_handlers_of_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys(IGNORED_SIGNALS, signal.SIG_DFL)
    found[signal.SIGALRM] = signal.SIG_IGN
    set_: dict[int, object] = {}
    monkeypatch.setattr(signal, "getsignal", found.__getitem__)
    monkeypatch.setattr(signal, "signal", set_.__setitem__)
    ignore_signals()
    assert set_ == {number: signal.SIG_IGN for number in IGNORED_SIGNALS if number != signal.SIGALRM}
