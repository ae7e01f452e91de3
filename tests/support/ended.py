"""Whether a process that is not our child has ended."""

import time
from pathlib import Path

LIMIT_S = 20.0


def ends_soon(pid: int) -> bool:
    """One that was killed takes a moment to go."""
    deadline_s = time.monotonic() + LIMIT_S
    while is_alive(pid):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in ("Z", "X")
