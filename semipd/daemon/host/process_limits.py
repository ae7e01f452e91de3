"""What the operating system lets this process have, and what that leaves for connections."""

import errno
import resource
from dataclasses import dataclass

from semipd.core.errors import SemipdError

RESERVED_FILES = 36
"""Not for connections: what the daemon always has open, starting an engine and renderers, reading files."""

MAX_RESERVED_CONNECTIONS = 16
"""Of HTTP, beyond the most connections, for requests that ask how the daemon is."""

MAX_LINGERING = 1024
"""Connections of HTTP that are being closed so that their last answer arrives, and as many that are being
refused; more are closed at once."""

_NEXT_STEPS = {
    errno.EMFILE: "The limit is on open files (`ulimit -n`): raise it, or use fewer connections.",
    errno.ENFILE: "The system has no more open files: raise fs.file-max, or close other programs.",
    errno.EAGAIN: "The limit is on processes and threads (`ulimit -u`, or the control group's): raise it.",
    errno.ENOMEM: "Free memory, or raise the limit on it.",
}
EXHAUSTED = frozenset(_NEXT_STEPS)
"""Errors of the system that pass when something is given back."""


@dataclass(frozen=True, slots=True)
class ConnectionRoom:
    """Of HTTP and of the Unix socket each. `num_passing`: beyond the most connections, such as are being
    refused or closed. `cause`: which limit is in force, for a refusal."""

    max_connections: int
    num_passing: int
    cause: str
    num_files: int = 0
    """The limit of open files, if it is the cause."""

    @classmethod
    def of(cls, wanted: int) -> "ConnectionRoom":
        """As many as wanted, or as the limit of open files leaves."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most_passing = MAX_RESERVED_CONNECTIONS + 2 * MAX_LINGERING
        room = wanted + most_passing
        if files != resource.RLIM_INFINITY:
            room = min(room, max((files - RESERVED_FILES) // 2, 2))
        number = min(wanted, max(room - most_passing, room * 2 // 3))
        is_short = number < wanted
        cause = f"limits.max_connections={wanted}"
        if is_short:
            cause = f"{number} connections, all that `ulimit -n` {files} leaves of {cause},"
        return cls(number, room - number, cause, files if is_short else 0)

    @property
    def num_reserved(self) -> int:
        """Of those passing, for operators."""
        return min(MAX_RESERVED_CONNECTIONS, self.num_passing // 2)

    @property
    def num_overflowing(self) -> int:
        """Of those passing, whose heads are read before they are refused."""
        return min(MAX_LINGERING, (self.num_passing - self.num_reserved) // 2)

    @property
    def num_lingering(self) -> int:
        """Of those passing, that are being closed."""
        return min(MAX_LINGERING, self.num_passing - self.num_reserved - self.num_overflowing)

    @property
    def next_step(self) -> str:
        raised = "Raise `ulimit -n` of the daemon, use" if self.num_files else "Use"
        return f"{raised} fewer connections, or try again later."

    @property
    def note(self) -> str | None:
        """For the log, when files are short."""
        if not self.num_files:
            return None
        return (
            f"at most {self.max_connections} connections may be open, over HTTP and the Unix socket each: "
            f"`ulimit -n` {self.num_files} leaves no more; raise `ulimit -Hn`"
        )


def raise_file_limit() -> str | None:
    """Raise the soft limit of open files to the hard one. Returns a note when that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            return f"the limit of open files stays at {soft}: {error}"
    return None


def exhausted(error: BaseException, what: str) -> SemipdError | None:
    """The refusal, when the system has no more of something now. `what` cannot be done without it."""
    number = _number(error)
    if number is None:
        return None
    message = f"{what} ({error})."
    return SemipdError("overloaded", message, next_step(number), retry_after_s=1)


def next_step(number: int | None) -> str:
    """For whoever runs the daemon, by the error's number."""
    return _NEXT_STEPS.get(number or 0, "Look at the daemon's log.")


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno if error.errno in EXHAUSTED else None
    # the interpreter's only way to say that a thread cannot be started
    return errno.EAGAIN if isinstance(error, RuntimeError) and "start new thread" in str(error) else None
