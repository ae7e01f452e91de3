"""Entry of a lane's process: `python -m semipd.devices.cpu.worker PARENT_PID SOCKET_FD`.

Imports nothing heavy before the parent's death is watched for.
"""

import os
import socket
import sys
from typing import NoReturn

from semipd.system.parent_death import die_with_parent

NICENESS = 5
"""Below daemon and coordinator, which must wake at once."""


def main() -> NoReturn:
    die_with_parent(int(sys.argv[1]), int(sys.argv[2]))
    os.nice(NICENESS)
    link = socket.socket(fileno=int(sys.argv[2]))
    from semipd.devices.cpu.serve import serve

    status = serve(link)
    sys.stderr.flush()
    # Nothing is left to save, and tearing torch down takes longer than a step.
    os._exit(status)


if __name__ == "__main__":
    main()
