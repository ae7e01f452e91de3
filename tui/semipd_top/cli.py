"""The command semipd-top."""

import argparse
import sys
from collections.abc import Sequence

from semipd import __version__

_NOT_YET = (
    "error [not_available]: semipd-top has no screen yet.\n"
    "`semipd-daemon status` (or `semipd-daemon status --json`) shows the running daemon's numbers today."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="semipd-top",
        description="Live dashboard of a semipd daemon.",
        epilog="Not available yet: use `semipd-daemon status`.",
    )
    parser.add_argument("--version", action="version", version=f"semipd-top {__version__}")
    parser.parse_args(argv)
    print(_NOT_YET, file=sys.stderr)
    return 2
