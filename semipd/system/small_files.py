"""Reading a file that ought to be small and at hand: a pipe that nobody writes to, or one without an end, is
an error and no wait."""

import os
from pathlib import Path

from semipd.system.readiness import any_readable

PIPE_LIMIT_S = 10.0
_CHUNK_BYTES = 2**16


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """All of it. Raises OSError: also when it has more than `max_bytes`, or is a pipe from which nothing
    comes for PIPE_LIMIT_S."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = b""
        while chunk := _chunk(descriptor):
            data += chunk
            if len(data) > max_bytes:
                raise OSError(f"it has more than {max_bytes} bytes")
        return data
    finally:
        os.close(descriptor)


def _chunk(descriptor: int) -> bytes:
    if not any_readable([descriptor], PIPE_LIMIT_S):
        raise TimeoutError(f"nothing came from it for {PIPE_LIMIT_S:g} s")
    return os.read(descriptor, _CHUNK_BYTES)
