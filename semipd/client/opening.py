"""What both clients share: how to reach the daemon, and how long to wait for it."""

import os
import socket
from pathlib import Path

from semipd.core.errors import ProtocolError, SemipdError
from semipd.wire.address import connect_error
from semipd.wire.client_protocol import hello
from semipd.wire.frames import encode_frame

CONNECT_LIMIT_S = 15.0
"""For room in the daemon's queue of connections, and then for its hello: a busy machine is not a fault."""

ANSWER_LIMIT_S = 30.0
RETRY_S = 0.02
MAX_ATTEMPTS = 3
"""To connect, while the daemon finds our hello late: nothing has been asked of it yet."""

READ_BYTES = 2**16


def connect_now(path: Path | str) -> socket.socket | None:
    """A connected socket that has said hello, in one go: nothing can come between. None: the daemon's queue
    of connections is full. Raises SemipdError: as `connect_error` says."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(os.fspath(path))
        sock.send(encode_frame(hello("semipd-client")))
    except BlockingIOError:
        sock.close()
        return None
    except (BrokenPipeError, ConnectionResetError):
        return sock  # closed already; its last words are there to be read
    except OSError as error:
        sock.close()
        raise connect_error(path, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def too_busy(path: Path | str) -> SemipdError:
    message = f"The daemon at {path} took no connection for {CONNECT_LIMIT_S:g} s: its queue is full."
    return SemipdError("daemon_silent", message, "Look at its log, and whether it is stopped.")


def no_hello(path: Path | str) -> SemipdError:
    message = f"The daemon at {path} said no hello for {CONNECT_LIMIT_S:g} s."
    return SemipdError("daemon_silent", message, "Look at its log, and whether it is stopped.")


def unanswered(op: str, limit_s: float) -> SemipdError:
    message = f"The daemon did not answer {op} within {limit_s:g} s."
    return SemipdError("daemon_silent", message, "Look at its log.")


def is_late(error: SemipdError) -> bool:
    """Our hello came too late: it can be said again."""
    return isinstance(error, ProtocolError) and error.code == "hello_expected"
