"""Somebody else's work on the same machine: processes that do nothing but keep a core busy."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"
"""Ends by itself when its parent is gone."""


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many, at our own niceness."""
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
