"""The engine process on a fake device that certain prompts kill: `python poison_engine.py PARENT_PID FD`.

What a prompt does is decided by its first token.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from semipd.devices.fake import FakeLane
from semipd.engine.launcher import EngineChild
from semipd.system.parent_death import die_with_parent

KILLS_IN_PREFILL = 399
KILLS_LATER = 398
LATER = 40
"""Tokens of prompt and output; then KILLS_LATER kills."""


def spawn_poisoned() -> EngineChild:
    """A `spawn` for the supervisor."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid()), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            process_group=0,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    return EngineChild(process, ours)


def poison(lane_class: type[FakeLane]) -> None:
    compute = lane_class._compute

    def deadly(self: FakeLane, resident: Any, start: int, length: int, *, sample: bool) -> int:
        first = resident.tokens[0]
        if first == KILLS_IN_PREFILL or (first == KILLS_LATER and start + length > LATER):
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, resident, start, length, sample=sample)

    lane_class._compute = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), int(sys.argv[2]))
    from semipd.engine.process import run_engine

    poison(FakeLane)
    os._exit(run_engine(int(sys.argv[2])))
