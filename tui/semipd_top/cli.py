"""The command semipd-top. What --help needs not is imported later: neither asyncio nor Textual."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semipd import __version__
from semipd.command_line.arguments import CommandParser, optional_path, whole_number
from semipd.command_line.completion import SHELLS, print_completion
from semipd.command_line.exit_codes import EPILOG
from semipd.command_line.run import run_command
from semipd.core.errors import SemipdError

if TYPE_CHECKING:
    from semipd_top.sources.contract import Source
    from semipd_top.sources.recording import Recorder

MIN_INTERVAL_S, MAX_INTERVAL_S, DEFAULT_INTERVAL_S = 0.25, 60.0, 0.5
DEMO_SKIP_S = 60.0
"""A demo that is looked at once begins where there is something to see."""

_CONFLICTS = (
    ("speed", "once"),
    ("replay", "demo"),
    ("replay", "socket"),
    ("replay", "interval"),
    ("replay", "record"),
    ("demo", "socket"),
    ("once", "count"),
    ("once", "theme"),
    ("json", "theme"),
    ("once", "read_only"),
    ("json", "read_only"),
)
_NEEDS = (("speed", "replay"), ("count", "json"))

_EPILOG = f"""\
{EPILOG}
The live screen waits for a daemon that is not there yet; --once and --json do not.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_command, argv, lambda error: f"error: {error} [{error.code}]")


def _command(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.completion is not None:
        return print_completion(parser, args.completion)
    _check_combination(parser, args)
    return _run(args)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="semipd-top",
        description="Live dashboard of a semipd daemon.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"semipd-top {__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a shell's completion script")
    what = parser.add_argument_group("what to watch")
    what.add_argument("--socket", type=optional_path, metavar="PATH", help="the daemon's Unix socket")
    what.add_argument("--replay", type=Path, metavar="FILE", help="a recording instead of a daemon")
    what.add_argument(
        "--speed",
        type=float,
        metavar="X",
        help="of a replay, 0.01 to 1000; default 1, with --json as fast as it can be read",
    )
    what.add_argument("--demo", action="store_true", help="a made-up daemon")
    what.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help=f"between two frames, {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g}; default {DEFAULT_INTERVAL_S:g}",
    )
    what.add_argument(
        "--record", type=Path, metavar="FILE", help="keep what is seen, for --replay; .gz: compressed"
    )
    screen = parser.add_argument_group("the screen")
    screen.add_argument("--read-only", action="store_true", help="nothing can be changed or cancelled")
    screen.add_argument("--theme", metavar="NAME", help="one of Textual's themes")
    pipe = parser.add_argument_group("without a screen")
    pipe.add_argument(
        "--once", action="store_true", help="print the first screen as text; of a recording, the last one"
    )
    pipe.add_argument("--json", action="store_true", help="one object a frame: state, events, lost")
    pipe.add_argument("--count", type=whole_number(), metavar="N", help="of --json: end after so many frames")
    return parser


def _check_combination(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    for name, other in _CONFLICTS:
        if {name, other} <= given:
            parser.error(f"{_flag(name)} and {_flag(other)} do not go together")
    for name, needed in _NEEDS:
        if name in given and needed not in given:
            parser.error(f"{_flag(name)} needs {_flag(needed)}")
    if args.interval is not None and not MIN_INTERVAL_S <= args.interval <= MAX_INTERVAL_S:
        bounds = f"{MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g}"
        parser.error(f"--interval is {args.interval:g}; it must be {bounds} seconds")
    if args.speed is not None:
        _check_speed(parser, args.speed)
    if args.count is not None and args.count < 1:
        parser.error(f"--count is {args.count}; it must be at least 1")


def _check_speed(parser: argparse.ArgumentParser, speed: float) -> None:
    from semipd_top.sources.replay import check_speed

    try:
        check_speed(speed)
    except SemipdError as error:
        parser.error(error.message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(args: argparse.Namespace) -> int:
    is_headless = args.once or args.json
    if not is_headless:
        _check_terminal()
    source = _source(args, is_headless)
    recorder = _recorder(args, source)
    try:
        if is_headless:
            _print(args, source, recorder)
            return 0
        return _show(args, source, recorder)
    finally:
        if recorder is not None:
            recorder.close()


def _check_terminal() -> None:
    streams = (("input", sys.stdin), ("output", sys.stdout), ("error", sys.stderr))
    lacking = [name for name, stream in streams if not stream.isatty()]
    if lacking:
        what = f"standard {' and '.join(lacking)} is none"
    elif os.environ.get("TERM") == "dumb":
        what = "TERM is dumb"
    else:
        return
    raise SemipdError(
        "no_terminal",
        f"The screen needs a terminal, and {what}.",
        "Use --once for one look as text, or --json for a stream of frames.",
    )


def _source(args: argparse.Namespace, is_headless: bool) -> "Source":
    if args.replay is not None:
        from semipd_top.sources.replay import ReplaySource

        return ReplaySource(args.replay, None if is_headless and args.speed is None else args.speed or 1.0)
    interval_s = args.interval or DEFAULT_INTERVAL_S
    if args.demo:
        from semipd_top.sources.demo import DemoSource

        return DemoSource(interval_s, skip_s=DEMO_SKIP_S if args.once else 0.0)
    from semipd_top.sources.live import LiveSource

    # rows of requests are neither in a JSON object nor on the first screen, but they belong in a recording
    wants_requests = not is_headless or args.record is not None
    return LiveSource(args.socket, interval_s, lambda: wants_requests, past_events=not is_headless)


def _recorder(args: argparse.Namespace, source: "Source") -> "Recorder | None":
    if args.record is None:
        return None
    from semipd_top.sources.recording import Recorder

    return Recorder(args.record, source.title, source.interval_s)


def _print(args: argparse.Namespace, source: "Source", recorder: "Recorder | None") -> None:
    from semipd_top import headless

    is_replay = args.replay is not None
    if args.once and args.json:
        if is_replay:
            headless.print_last_frame(source)
        else:
            headless.print_frames(source, recorder, 1)
    elif args.once:
        headless.print_first_screen(source, recorder, to_the_end=is_replay)
    else:
        headless.print_frames(source, recorder, args.count)


def _show(args: argparse.Namespace, source: "Source", recorder: "Recorder | None") -> int:
    from semipd_top.screen.environment import blamed_on_variables

    with blamed_on_variables():
        from textual.app import InvalidThemeError

        from semipd_top.screen.app import run_app

    if isinstance(sys.__stderr__, io.TextIOWrapper):
        # Textual draws there: what the terminal's encoding lacks must keep its width
        sys.__stderr__.reconfigure(errors="replace")
    try:
        return run_app(source, recorder, read_only=args.read_only, theme=args.theme)
    except InvalidThemeError as error:
        from textual.theme import BUILTIN_THEMES

        known = ", ".join(sorted(BUILTIN_THEMES))
        raise SemipdError(
            "unknown_theme", f"There is no theme {args.theme!r}.", f"Known: {known}."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
