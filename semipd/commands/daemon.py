"""The command semipd-daemon: start, stop, status, config; commands.operators adds drain, partition, slo;
commands.record adds record."""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from semipd import __version__
from semipd.command_line.answers import understood
from semipd.command_line.arguments import CommandParser, repeated, whole_number
from semipd.command_line.completion import add_completion_command
from semipd.command_line.exit_codes import exit_code_of
from semipd.command_line.run import run_command
from semipd.command_line.streams import print_in_utf8
from semipd.commands.fetch import add_fetch_command
from semipd.commands.operators import add_drain_command, add_partition_commands, duration
from semipd.commands.record import add_record_command
from semipd.commands.status_text import drain_text, status_lines
from semipd.config.config import SPECS, Config, Override, load_config
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import DrainState, Status
from semipd.daemon.access.peers import peer_of
from semipd.system.readiness import any_readable
from semipd.wire.address import connect_error

log = logging.getLogger(__name__)

STOP_LIMIT_S = 60.0
"""For a daemon to tell its clients and to end its engine, when it has drained."""

REFUSED_LIMIT_S = 5.0
CONNECT_LIMIT_S = 5.0

_FLAGS = {
    "--model": "model.name",
    "--device": "engine.device",
    "--dtype": "model.dtype",
    "--host": "server.host",
    "--port": "server.port",
    "--socket": "server.socket",
    "--log-format": "server.log_format",
}
_WHERE = ("config", "socket", "set", "pid_file")
_NEXT_STEPS = {
    "daemon_not_running": "Start one with `semipd-daemon start{}`, or give --socket if it uses another path.",
    "already_running": "Stop it with `semipd-daemon stop{}`, or choose another --pid-file.",
}
"""With the options that say which daemon is meant, as they were given."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_run, argv, _text_of)


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    arguments.argv = list(argv)
    try:
        return int(arguments.run(arguments))
    except SemipdError as error:
        if step := _NEXT_STEPS.get(error.code):
            error.hint = step.format(repeated(arguments, _WHERE))
        raise


def _text_of(error: SemipdError) -> str:
    return f"error [{error.code}]: {error.message}" + (f"\n{error.hint}" if error.hint else "")


def _parser() -> CommandParser:
    parser = CommandParser(prog="semipd-daemon", description="Serve a language model from two lanes.")
    parser.add_argument("--version", action="version", version=f"semipd-daemon {__version__}")
    commands = parser.add_subparsers(metavar="command")

    start = commands.add_parser("start", help="start in the foreground (Ctrl-C stops it), or detached")
    _add_options(start, _FLAGS)
    start.add_argument(
        "--detach",
        action="store_true",
        help="in the background; returns when the daemon is ready or has failed",
    )
    start.add_argument("--pid-file", type=Path, metavar="FILE", help="default: the socket's path with .pid")
    start.add_argument("--log-file", type=Path, metavar="FILE", help="default: the socket's path with .log")
    start.add_argument(
        "--report-fd", type=whole_number(0, 2**20), help=argparse.SUPPRESS
    )  # how the detached process is started
    start.set_defaults(run=_start)

    stop = commands.add_parser("stop", help="let requests finish, stop the daemon and wait until it is gone")
    _add_options(stop, ["--socket"])
    deadline = stop.add_mutually_exclusive_group()
    deadline.add_argument(
        "--within",
        type=duration,
        metavar="TIME",
        help="for requests to finish, such as 90s, 10m; default: drain.limit_s",
    )
    deadline.add_argument("--now", action="store_true", help="end requests at once")
    stop.add_argument("--reason", default="", help="for the log")
    stop.add_argument("--pid-file", type=Path, metavar="FILE", help="default: the socket's path with .pid")
    stop.set_defaults(run=_stop)

    status = commands.add_parser("status", help="show a running daemon's numbers")
    _add_options(status, ["--socket"])
    status.add_argument("--json", action="store_true", help="the whole status document")
    status.set_defaults(run=_status)

    add_drain_command(commands, lambda parser: _add_options(parser, ["--socket"]), _reachable_socket)
    add_partition_commands(commands, lambda parser: _add_options(parser, ["--socket"]), _reachable_socket)
    add_record_command(commands, lambda parser: _add_options(parser, ["--socket"]), _reachable_socket)

    add_fetch_command(commands)
    config = commands.add_parser("config", help="print the resolved configuration as TOML")
    _add_options(config, _FLAGS)
    config.add_argument(
        "--explain", action="store_true", help="each value, where it comes from, what it does"
    )
    config.set_defaults(run=_config)
    add_completion_command(commands, parser)
    return parser


def _add_options(parser: argparse.ArgumentParser, flags: Sequence[str] | Mapping[str, str]) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; without it, none is read")
    for flag in flags:
        rule = SPECS[_FLAGS[flag]].rule
        parser.add_argument(flag, metavar="VALUE", help=rule.description)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="any option of the configuration; may be repeated",
    )


def _load(arguments: argparse.Namespace) -> Config:
    overrides = [
        Override(key, text, flag)
        for flag, key in _FLAGS.items()
        if (text := getattr(arguments, flag[2:].replace("-", "_"), None)) is not None
    ]
    for assignment in arguments.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            message = f"--set {assignment} has no equals sign."
            raise SemipdError("invalid_config", message, "Write --set section.key=value.")
        overrides.append(Override(key.strip(), text, "--set"))
    config = load_config(arguments.config, os.environ, overrides)
    if not config.socket_path.name:
        message = f"server.socket={config.server.socket} names no file."
        raise SemipdError(
            "invalid_config", message, "Name a file in a folder of yours.", param="server.socket"
        )
    return config


def _start(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    if not arguments.detach:
        _refuse_background_flags(arguments)
    elif arguments.report_fd is None:
        return _detach(arguments, config)
    from semipd.daemon.app import run  # here: --help and stop need none of what the daemon imports

    if arguments.report_fd is None:
        return run(config)
    from semipd.daemon.host.detach import Report

    report = Report(arguments.report_fd)
    try:
        pid_file, log_file = _pid_file(arguments, config), _log_file(arguments, config)
        return run(config, pid_file=pid_file, log_file=log_file, on_ready=report.ready)
    except SemipdError as error:
        report.failed(error)
        log.error("the start failed [%s]: %s", error.code, error)
        return exit_code_of(error)


def _refuse_background_flags(arguments: argparse.Namespace) -> None:
    for flag, given in (("--pid-file", arguments.pid_file), ("--log-file", arguments.log_file)):
        if given is not None:
            message = f"{flag} is for a detached daemon."
            raise SemipdError("conflicting_options", message, f"Add --detach, or leave {flag} out.")


def _detach(arguments: argparse.Namespace, config: Config) -> int:
    from semipd.daemon.host.detach import start_detached

    log_file = _log_file(arguments, config)
    pid, announcement = start_detached(arguments.argv, log_file)
    print(announcement, end="")
    stop = f"semipd-daemon stop{repeated(arguments, _WHERE)}"
    print(f"pid {pid} ({_pid_file(arguments, config)}), log {log_file}; stop it with: {stop}")
    return 0


def _pid_file(arguments: argparse.Namespace, config: Config) -> Path:
    path: Path = arguments.pid_file or config.socket_path.with_suffix(".pid")
    return path


def _log_file(arguments: argparse.Namespace, config: Config) -> Path:
    path: Path = arguments.log_file or config.socket_path.with_suffix(".log")
    return path


def _config(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    if not arguments.explain:
        print_in_utf8()
        print(config.to_toml(), end="")
        return 0
    for key, value, origin, description in config.explain():
        print(f"{key} = {value!r}  [{origin}]\n    {description}")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    path = config.socket_path
    asked: dict[str, Any] = {"reason": arguments.reason}
    if arguments.now or arguments.within is not None:
        asked["limit_s"] = 0.0 if arguments.now else arguments.within
    try:
        pid = _peer_pid(path)
    except SemipdError as error:
        return _stop_unreachable(error, _pid_file(arguments, config))
    with suppress(ProcessLookupError):
        # opened before the daemon is asked, so that the number cannot pass to another process unnoticed
        process = os.pidfd_open(pid)
        try:
            _ask_and_wait(path, process, pid, asked)
        finally:
            os.close(process)
    print(f"The daemon (pid {pid}) has stopped.")
    return 0


def _stop_unreachable(error: SemipdError, pid_file: Path) -> int:
    """Its socket is gone: a detached daemon may still run, and holds the lock on its pid file if so."""
    from semipd.daemon.host.detach import locked_pid

    pid = locked_pid(pid_file)
    if pid is None:
        if pid_file.exists():
            print(f"{pid_file} is stale: its daemon has ended, whoever has its number now.", file=sys.stderr)
        raise error
    print(f"No socket, but the daemon of {pid_file} runs (pid {pid}): sending SIGTERM.", file=sys.stderr)
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not any_readable([process], STOP_LIMIT_S):
            raise _stop_timeout(pid, STOP_LIMIT_S)
    finally:
        os.close(process)
    print(f"The daemon (pid {pid}) has stopped.")
    return 0


def _ask_and_wait(path: Path, process: int, pid: int, asked: Mapping[str, Any]) -> None:
    limit_s = STOP_LIMIT_S
    refused: SemipdError | None = None
    try:
        with understood(path):
            drain = asyncio.run(_ask_to_stop(path, asked))
            limit_s += drain["seconds_left"] or 0.0
            if drain["awaited"]:
                print(drain_text(drain), file=sys.stderr)
    except SemipdError as error:
        # the daemon may be on its way out already and close connections without an answer
        refused, limit_s = error, REFUSED_LIMIT_S
    if any_readable([process], limit_s):
        return
    if refused is not None:
        raise refused
    raise _stop_timeout(pid, limit_s)


def _stop_timeout(pid: int, limit_s: float) -> SemipdError:
    return SemipdError(
        "stop_timeout",
        f"The daemon (pid {pid}) was asked to stop and has not ended within {limit_s:g} s.",
        f"Its log says what it waits for; `kill -KILL {pid}` ends it and its engine at once.",
    )


def _peer_pid(path: Path) -> int:
    """Who listens at `path`. Raises SemipdError as `connect_error` says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(CONNECT_LIMIT_S)
        try:
            peer.connect(os.fspath(path))
        except OSError as error:
            raise connect_error(path, error) from error
        return peer_of(peer).pid


async def _ask_to_stop(path: Path, asked: Mapping[str, Any]) -> DrainState:
    from semipd.client import AsyncClient

    async with await AsyncClient.connect(path) as client:
        return await client.shutdown(**asked)


def _reachable_socket(arguments: argparse.Namespace) -> Path:
    """Raises SemipdError as `connect_error` says."""
    path = _load(arguments).socket_path
    _peer_pid(path)
    return path


def _status(arguments: argparse.Namespace) -> int:
    path = _reachable_socket(arguments)
    with understood(path):
        status = asyncio.run(_fetch_status(path))
        print(json.dumps(status, indent=2) if arguments.json else "\n".join(status_lines(status)))
    return 0


async def _fetch_status(path: Path) -> Status:
    from semipd.client import AsyncClient

    async with await AsyncClient.connect(path) as client:
        return await client.status()


if __name__ == "__main__":
    sys.exit(main())
