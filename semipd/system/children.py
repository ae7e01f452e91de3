"""How child processes of ours are born: with our own modules, and shielded from signals until they listen."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = Path(__file__).absolute().parents[2]
"""The folder that holds this very semipd."""

HELD_SIGNALS = (signal.SIGHUP, signal.SIGUSR1)
"""They mean something to us, and end a process that has not come to say so yet."""

IGNORED_SIGNALS = (
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


def module_command(module: str) -> list[str]:
    """The command that runs a module of ours as a process. -P: the working directory, which may belong to
    anybody, is not searched for modules."""
    return [sys.executable, "-P", "-m", module]


def module_environment() -> dict[str, str]:
    """The environment of that process: it finds the semipd that its parent runs, and nothing in the working
    directory; nor does what it starts itself."""
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(_search_path())}


def _search_path() -> list[str]:
    """PYTHONPATH without empty and relative entries: they mean what the working directory holds. To it comes
    where we were found ourselves; but what is installed, Python finds by itself, behind its own library."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    entries = [entry for entry in given if Path(entry).is_absolute()]
    is_installed = _ROOT.name in ("site-packages", "dist-packages")
    is_searched = any(Path(entry or ".").absolute() == _ROOT for entry in sys.path)
    return [*entries, str(_ROOT)] if is_searched and not is_installed else entries


def kill_group(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """SIGKILL to a process that was started as the leader of a group (`process_group=0` or
    `start_new_session=True`) and to all that it has started, also when it has ended itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ignore_signals() -> None:
    """Those that mean nothing to us and would end us, or stop us when we write to a terminal; whoever set
    something else for one of them keeps that. Children inherit it."""
    for number in IGNORED_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """A process started within is born with HELD_SIGNALS blocked, until it calls `release_signals`. For the
    main thread."""
    before = hold_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_signals() -> set[signal.Signals | int]:
    """Block HELD_SIGNALS: one that comes waits for `release_signals`. Returns the mask before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS))


def release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def follow_parents_log() -> None:
    """Write to the file that is our parent's standard error stream now. For a signal handler, so it logs
    nothing. A parent that writes elsewhere, as to a terminal, is not followed: ours is the same already."""
    theirs = Path(f"/proc/{os.getppid()}/fd/2")
    try:
        if theirs.is_file():
            descriptor = os.open(theirs, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.dup2(descriptor, 2)
            os.close(descriptor)
    except OSError as error:
        os.write(2, f"the log file was not opened again: {error.strerror}\n".encode())
