"""The end of a terminal that nobody signals: closed from outside, while SIGHUP is ignored or misses us."""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from semipd.command_line.exit_codes import DONE

GRACE_S = 1.0
"""For an orderly end. Textual may wait for ever to write to a terminal that is gone."""

LOOK_EVERY_S = 0.25
"""Whether the block is over; a hang-up is seen at once."""


@contextmanager
def watched_terminal(descriptor: int) -> Iterator[threading.Event]:
    """While the block runs: this process gets SIGTERM when that terminal is gone; the event is set then. A
    block that does not end within GRACE_S of that ends with the process. Only terminals are watched."""
    gone, over = threading.Event(), threading.Event()

    def watch() -> None:
        if _hangs_up(descriptor, over):
            gone.set()
            os.kill(os.getpid(), signal.SIGTERM)
            if not over.wait(GRACE_S):
                os._exit(DONE)

    if os.isatty(descriptor):
        threading.Thread(target=watch, name="terminal", daemon=True).start()
    try:
        yield gone
    finally:
        over.set()


def _hangs_up(descriptor: int, over: threading.Event) -> bool:
    """Waits for it; False: it is over before."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always told
    while not over.is_set():
        if poll.poll(LOOK_EVERY_S * 1e3):
            return True
    return False
