"""Where the daemon's Unix socket is when nobody says otherwise; daemon, client and dashboard agree here."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


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
