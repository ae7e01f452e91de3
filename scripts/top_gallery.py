"""Draw the pictures of docs/top.md from the demo source: docs/images/top/*.svg.

    python scripts/top_gallery.py [--out FOLDER] [NAME ...]

The same moments at the same sizes are compared by tests/tui/test_snapshots.py with the pictures kept there.
"""

import argparse
import asyncio
from pathlib import Path

from toplib.moments import BY_NAME, still
from toplib.still import in_utc, screenshot

REPOSITORY = Path(__file__).parents[1]
GALLERY = (
    "overview",
    "override",
    "overridden",
    "requests",
    "inspect",
    "events",
    "restarting",
    "draining",
    "disconnected",
)
SIZE = (120, 36)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BY_NAME)}")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/images/top")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BY_NAME):
        parser.error(f"no such moment: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    with in_utc():
        for name in args.names or GALLERY:
            moment = BY_NAME[name]
            picture = asyncio.run(screenshot(still(moment), SIZE, *moment.keys))
            (args.out / f"{name}.svg").write_text(picture)
            print(args.out / f"{name}.svg")


if __name__ == "__main__":
    main()
