"""Where the daemon's Unix socket is when nobody says otherwise, and why nobody can be reached at one; daemon,
client and dashboard agree here."""

import os
import shlex
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from semipd.core.errors import SemipdError


def default_socket_path(environ: Mapping[str, str] = os.environ) -> Path:
    """$XDG_RUNTIME_DIR/semipd/daemon.sock, else below /run/user/<uid> if that is ours, else a folder
    with our uid in its name below the system's temporary folder. Creates nothing."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    uid = os.getuid()
    if runtime.startswith("/"):  # the XDG specification says to ignore relative paths
        return Path(runtime) / "semipd" / "daemon.sock"
    run_user = Path(f"/run/user/{uid}")
    if run_user.is_dir() and run_user.stat().st_uid == uid:
        return run_user / "semipd" / "daemon.sock"
    return Path(tempfile.gettempdir()) / f"semipd-{uid}" / "daemon.sock"


def socket_option(path: Path | str) -> str:
    """What a command needs to reach this socket, with a space before it; empty for the default one."""
    return "" if Path(path) == default_socket_path() else f" --socket {shlex.quote(os.fspath(path))}"


def connect_error(path: Path | str, error: OSError) -> SemipdError:
    """Why there is no connection to the socket at `path`: `daemon_not_running`, `permission_denied`,
    `daemon_silent` or `socket_unreachable`."""
    why = error.strerror or str(error) or "timeout"
    if isinstance(error, PermissionError):
        message = f"The socket {path} may not be used by user {os.geteuid()} ({why})."
        hint = "Ask its owner: its folder must be open to you, and socket.group must name a group of yours."
        return SemipdError("permission_denied", message, hint)
    if isinstance(error, TimeoutError | BlockingIOError):
        message = f"The daemon at {path} does not answer ({why})."
        return SemipdError("daemon_silent", message, "Look at its log, and whether it is stopped.")
    if not isinstance(error, FileNotFoundError | ConnectionRefusedError):
        message = f"The socket {path} cannot be reached ({why})."
        return SemipdError("socket_unreachable", message, "Check its path.")
    if _is_no_socket(path):
        return SemipdError("socket_unreachable", f"{path} is no socket.", "Check its path.")
    start = f"semipd-daemon start{socket_option(path)}"
    hint = f"Start one with `{start}`, or give --socket if it uses another path."
    return SemipdError("daemon_not_running", f"No daemon answers at {path} ({why}).", hint)


def _is_no_socket(path: Path | str) -> bool:
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 (it may be a string)
    except OSError:
        return False
