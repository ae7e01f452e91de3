"""Runs a command that ends when its parent does, however that ends: `child.py PARENT_PID COMMAND ...`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a bare GPU image has not installed us

from semipd.system.parent_death import die_with_parent

EXIT_NOT_FOUND = 127


def mortal(command: Sequence[str]) -> list[str]:
    """The command, so that what it starts does not outlive this process. Start it from the main thread."""
    return [sys.executable, __file__, str(os.getpid()), *command]


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent_pid)
    try:
        # what was asked of the kernel outlives exec
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_NOT_FOUND)


if __name__ == "__main__":
    main()
