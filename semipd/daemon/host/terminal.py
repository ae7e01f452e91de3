"""Whether the terminal that a daemon was started from is still there."""

import os
import signal


class Terminal:
    """SIGHUP has two senders: somebody who wants files read again, and a terminal that closes."""

    def __init__(self) -> None:
        """Under nohup, which ignores SIGHUP, a daemon outlives its terminal."""
        self._matters = _is_there() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def was_closed(self) -> bool:
        return self._matters and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
