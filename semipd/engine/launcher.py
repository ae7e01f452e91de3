"""Starting the engine process: what the daemon sees of this room."""

import os
import socket
import subprocess
import threading
from dataclasses import dataclass

from semipd.system.children import module_command, module_environment, signals_held


@dataclass(frozen=True, slots=True)
class EngineChild:
    """`link` speaks frames. Handshake: the daemon sends {op: start, settings}; the engine answers
    {op: phase, name, limit_s} for each start-up phase, then {op: ready, info, model, scheduler}
    or {op: failed, code, message, hint} and exits."""

    process: subprocess.Popen[bytes]
    link: socket.socket


def spawn_engine() -> EngineChild:
    """Start the engine by exec. Call from the main thread: the child's death signal follows the thread."""
    assert threading.current_thread() is threading.main_thread(), "engines must be spawned by the main thread"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, signals_held():
        try:
            process = subprocess.Popen(
                [*module_command("semipd.engine"), str(os.getpid()), str(theirs.fileno())],
                env=module_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise
    return EngineChild(process, ours)
