"""Starting in the background: a process of its own session, its pid file, and word of how the start went."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError
from semipd.system.children import module_command, module_environment, signals_held
from semipd.system.safe_files import make_folder, open_log, open_safely

MAX_PID_FILE_BYTES = 32

LAST_LINES = 5
LAST_BYTES = 2**16
"""Of the log, shown when a start fails without a word."""


@contextmanager
def claim_pid_file(path: Path) -> Iterator[int | None]:
    """Our pid stands in `path` while the context lasts. Yields the pid of a daemon that died without removing
    its own; None: there was none.

    A lock on the file, not the number in it, tells whether that daemon runs: the system reuses numbers.
    Raises SemipdError: `already_running`, `pid_file_unusable`.
    """
    descriptor = _open_locked(path)
    try:
        stale = _pid_in(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield stale
    finally:
        if _is_same_file(descriptor, path):
            path.unlink(missing_ok=True)  # before the lock goes with the descriptor
        os.close(descriptor)


def locked_pid(path: Path) -> int | None:
    """The pid of the running daemon that holds this file; None: nobody does, whatever number stands in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _pid_in(descriptor)
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    try:
        make_folder(path.parent)
        while True:
            descriptor = open_safely(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _pid_in(descriptor)
                os.close(descriptor)
                raise SemipdError(
                    "already_running",
                    f"A daemon runs already with the pid file {path}, pid {pid}.",
                    "Stop it with `semipd-daemon stop`, or choose another --pid-file.",
                ) from None
            if not _may_be_pid_file(descriptor):
                os.close(descriptor)
                raise SemipdError(
                    "pid_file_unusable",
                    f"{path} exists and is no pid file: it would be overwritten, and removed at the end.",
                    "Choose another --pid-file.",
                )
            if _is_same_file(descriptor, path):
                return descriptor
            os.close(descriptor)  # its daemon ended and removed it between our two calls
    except OSError as error:
        message = f"The pid file {path} cannot be written: {error.strerror}."
        raise SemipdError("pid_file_unusable", message, "Choose another --pid-file.") from error


def _may_be_pid_file(descriptor: int) -> bool:
    """A few bytes are hardly what somebody has written."""
    return os.fstat(descriptor).st_size <= MAX_PID_FILE_BYTES


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, MAX_PID_FILE_BYTES, 0).decode(errors="replace").strip()
    return int(text) if text.isascii() and text.isdecimal() else None


class Report:
    """The background process's end of the pipe to whoever started it. One word, then it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def ready(self, announcement: str) -> None:
        self._say({"ready": announcement})

    def failed(self, error: SemipdError) -> None:
        self._say({"failed": error.details})

    def _say(self, word: dict[str, Any]) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with os.fdopen(descriptor, "w") as pipe:
                pipe.write(json.dumps(word))


def start_detached(arguments: Sequence[str], log_file: Path) -> tuple[int, str]:
    """Run `semipd-daemon ARGUMENTS --report-fd N` in a session of its own, its log appended to `log_file`,
    and wait until it is ready. The daemon bounds each phase of its start. Returns its pid and announcement.

    Raises the daemon's own SemipdError, `start_failed` when it ends without a word, `log_file_unusable`.
    """
    reader, writer = os.pipe()
    with os.fdopen(reader) as word:
        try:
            process = _spawn([*arguments, "--report-fd", str(writer)], writer, log_file)
        finally:
            os.close(writer)
        try:
            said = json.loads(word.read() or "{}")
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if "ready" in said:
        return process.pid, said["ready"]
    code = process.wait()
    if "failed" in said:
        raise SemipdError(**said["failed"])
    raise SemipdError(
        "start_failed",
        f"The daemon ended with code {code} before it was ready.",
        f"The end of its log {log_file}:\n{_last_lines(log_file)}",
    )


def _spawn(arguments: Sequence[str], writer: int, log_file: Path) -> "subprocess.Popen[bytes]":
    try:
        make_folder(log_file.parent)
        descriptor = open_log(log_file)
    except OSError as error:
        message = f"The log file {log_file} cannot be written: {error.strerror}."
        raise SemipdError("log_file_unusable", message, "Choose another --log-file.") from error
    try:
        with signals_held():
            return subprocess.Popen(
                [*module_command("semipd.commands.daemon"), *arguments],
                env=module_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # for people, who get it through the pipe
                stderr=descriptor,
                pass_fds=[writer],
                start_new_session=True,
            )
    finally:
        os.close(descriptor)


def _last_lines(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])
