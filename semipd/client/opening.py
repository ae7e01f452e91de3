"""What both clients share: how to reach the daemon, how long to wait for it, and what its frames are."""

import os
import socket
from collections import deque
from pathlib import Path
from typing import Any

from semipd.core.errors import ProtocolError, SemipdError
from semipd.wire.address import connect_error
from semipd.wire.client_protocol import check_hello, error_from_wire, hello
from semipd.wire.client_results import Greeting
from semipd.wire.frames import FrameReader, encode_frame

CONNECT_LIMIT_S = 15.0
"""For room in the daemon's queue of connections, and then for its hello: a busy machine is not a fault."""

ANSWER_LIMIT_S = 30.0
RETRY_S = 0.02
MAX_ATTEMPTS = 3
"""To connect, while the daemon finds our hello late: nothing has been asked of it yet."""

READ_BYTES = 2**16


def knock(path: Path | str) -> socket.socket | None:
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


def greeting_of(message: dict[str, Any]) -> Greeting:
    """Raises ProtocolError: the daemon's own error, or that it is none."""
    check_hello(message)
    return Greeting.from_wire(message)


def is_late(error: SemipdError) -> bool:
    """Our hello came too late: it can be said again."""
    return isinstance(error, ProtocolError) and error.code == "hello_expected"


class Answer(dict[str, Any]):
    """A frame that answers a request. A key that is missing is the daemon's fault, not ours."""

    def __missing__(self, key: str) -> Any:
        raise SemipdError("malformed_answer", f"The daemon's answer has no {key}.", "Is this semipd?")


class Incoming:
    """Frames as they arrive, and why the connection has ended, in the daemon's words if it has said any."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._said: SemipdError | None = None
        self.messages: deque[dict[str, Any]] = deque()

    def feed(self, data: bytes) -> None:
        """Raises ProtocolError."""
        self.messages.extend(self._frames.feed(data))

    def request_id(self, message: dict[str, Any]) -> int | None:
        """Whom it is for. An error for nobody is what the daemon says before it closes; one that names a
        `duplicate` is about a frame of ours, and the request of that id goes on."""
        request_id = message.get("id")
        if request_id is None and "error" in message and "duplicate" not in message:
            self._said = error_from_wire(message["error"])
        return request_id if isinstance(request_id, int) else None

    def ended(self) -> SemipdError:
        if self._said is not None:
            return self._said
        cut = f" {self._frames.pending_bytes} bytes into a frame" if self._frames.pending_bytes else ""
        return SemipdError("connection_lost", f"The daemon closed the connection{cut}.", "Connect again.")


def answer_of(message: dict[str, Any]) -> Answer:
    """Raises SemipdError: the error that the request was answered with."""
    if "error" in message:
        raise error_from_wire(message["error"])
    return Answer(message)
