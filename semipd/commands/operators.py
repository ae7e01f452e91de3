"""semipd-daemon drain, partition and slo: let requests finish; look at partition control, override it, change
targets."""

import argparse
import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from semipd.command_line.answers import understood
from semipd.command_line.arguments import number, whole_number
from semipd.commands.status_text import drain_text, slo_lines
from semipd.core.errors import SemipdError
from semipd.core.slo import DEFAULT_CLASS, SLO_BOUNDS
from semipd.core.state.daemon import DrainState
from semipd.core.state.partition import (
    Change,
    ChangeAnswer,
    MsHistogram,
    PartitionDocument,
    SloAnswer,
    SloDocument,
)

if TYPE_CHECKING:
    from semipd.client import AsyncClient, StateStream
    from semipd.wire.client_protocol import StateFrame

SHOWN_CHANGES = 5
DRAIN_INTERVAL_MS = 500
FRAME_LIMIT_S = 10.0
MAX_DURATION_S = 3650 * 86400.0
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TARGETS = tuple(SLO_BOUNDS)

D = TypeVar("D")


def add_partition_commands(
    commands: Any, add_options: Callable[[argparse.ArgumentParser], None], socket_of: Callable[[Any], Path]
) -> None:
    """`commands`: what `add_subparsers` returned. `socket_of` finds a running daemon's socket."""
    partition = commands.add_parser("partition", help="show or override how the device is divided")
    actions = partition.add_subparsers(metavar="action")
    show = actions.add_parser("show", help="mode, split, predictions, possible splits, history")
    fix = actions.add_parser("set", help="hold a split until further notice, or for a time")
    units = fix.add_mutually_exclusive_group(required=True)
    units.add_argument(
        "--prefill", type=whole_number(), dest="prefill_units", metavar="UNITS", help="SMs or cores"
    )
    units.add_argument(
        "--decode", type=whole_number(), dest="decode_units", metavar="UNITS", help="SMs or cores"
    )
    off = actions.add_parser("off", help="do not split: merged steps on the whole device")
    auto = actions.add_parser("auto", help="end an override: the policy decides again")
    for parser, mode in ((fix, "fixed"), (off, "off"), (auto, "auto")):
        parser.set_defaults(mode=mode, run=lambda arguments: _set(arguments, socket_of(arguments)))
        parser.add_argument("--reason", default="", help="for the history")
        parser.add_argument("--dry-run", action="store_true", help="only say what would come of it")
        if mode != "auto":
            parser.add_argument(
                "--for",
                type=duration,
                dest="expires_s",
                metavar="TIME",
                help="such as 90s, 10m, 2h; then auto",
            )
    show.set_defaults(run=lambda arguments: _show(arguments, socket_of(arguments)))
    slo = commands.add_parser("slo", help="show the targets and what is observed; change them")
    slo.add_argument(
        "--class", dest="service_class", default=DEFAULT_CLASS, metavar="NAME", help="service class to change"
    )
    for name in _TARGETS:
        slo.add_argument("--" + name.replace("_", "-"), type=number(), metavar="VALUE")
    slo.add_argument("--reason", default="", help="for the history")
    slo.set_defaults(run=lambda arguments: _slo(arguments, socket_of(arguments)))
    for parser in (show, fix, off, auto, slo):
        add_options(parser)
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def add_drain_command(
    commands: Any, add_options: Callable[[argparse.ArgumentParser], None], socket_of: Callable[[Any], Path]
) -> None:
    """Parameters as of `add_partition_commands`."""
    drain = commands.add_parser(
        "drain", help="refuse new requests and let those under way finish, or undo that"
    )
    drain.add_argument(
        "--within",
        type=duration,
        metavar="TIME",
        help="for requests to finish, such as 90s, 10m; default: drain.limit_s",
    )
    drain.add_argument("--wait", action="store_true", help="return when nothing runs any more")
    drain.add_argument("--undo", action="store_true", help="serve again")
    drain.add_argument("--reason", default="", help="for the log")
    drain.add_argument("--json", action="store_true", help="print the answer as JSON")
    drain.set_defaults(run=lambda arguments: _drain(arguments, socket_of(arguments)))
    add_options(drain)


def _drain(arguments: argparse.Namespace, path: Path) -> int:
    asked: dict[str, Any] = {"reason": arguments.reason, "cancel": arguments.undo}
    if arguments.within is not None:
        asked["limit_s"] = arguments.within
    shown = _call(path, lambda client: client.drain(**asked))
    if arguments.wait:
        shown = _call(path, _until_drained)
    _print(arguments, shown, lambda drain: [drain_text(drain)])
    return 0


async def _until_drained(client: "AsyncClient") -> DrainState:
    """The daemon itself bounds how long that takes."""
    async with client.subscribe(interval_ms=DRAIN_INTERVAL_MS) as states:
        while (frame := await _next_frame(states)) is not None:
            drain = frame.state["drain"]
            if drain["state"] != "draining":
                return drain
    raise SemipdError("connection_lost", "The daemon ended while it was draining.", "Look at its log.")


async def _next_frame(states: "StateStream") -> "StateFrame | None":
    """None: there are no more."""
    try:
        async with asyncio.timeout(FRAME_LIMIT_S):
            return await anext(states, None)
    except TimeoutError as error:
        message = f"The daemon has sent nothing for {FRAME_LIMIT_S:g} s."
        raise SemipdError("daemon_silent", message, "Look at its log, and whether it is stopped.") from error


def _show(arguments: argparse.Namespace, path: Path) -> int:
    document = _call(path, lambda client: client.partition())
    _print(arguments, document, partition_lines)
    return 0


def _set(arguments: argparse.Namespace, path: Path) -> int:
    names = ("mode", "prefill_units", "decode_units", "expires_s", "reason", "dry_run")
    asked = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    answer = _call(path, lambda client: client.set_partition(**asked))
    _print(arguments, answer, change_lines)
    return 0


def _slo(arguments: argparse.Namespace, path: Path) -> int:
    targets = {name: value for name in _TARGETS if (value := getattr(arguments, name)) is not None}
    if targets:
        targets |= {"service_class": arguments.service_class, "reason": arguments.reason}
        answer = _call(path, lambda client: client.set_slo(**targets))
    else:
        answer = _call(path, lambda client: client.slo())
    _print(arguments, answer, levels_lines)
    return 0


def _call(path: Path, question: Callable[["AsyncClient"], Awaitable[D]]) -> D:
    from semipd.client import AsyncClient  # here: --help needs none of what it imports

    async def ask() -> D:
        async with await AsyncClient.connect(path) as client:
            return await question(client)

    with understood(path):
        return asyncio.run(ask())


def _print(arguments: argparse.Namespace, document: D, lines: Callable[[D], list[str]]) -> None:
    with understood("the daemon"):
        print(json.dumps(document, indent=2) if arguments.json else "\n".join(lines(document)))


def duration(text: str) -> float:
    """For argparse: seconds."""
    try:
        return parse_duration(text)
    except SemipdError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_duration(text: str) -> float:
    """Seconds. Raises SemipdError(`invalid_value`)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = math.inf if match is None else float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION_S:
        message = f"{text!r:.40} is no time of at most {MAX_DURATION_S / 86400:.0f} days."
        raise SemipdError("invalid_value", message, "Write 90s, 10m, 2h or 1d.", param="expires_s")
    return seconds


def partition_lines(document: PartitionDocument) -> list[str]:
    """GET /v1/partition, one fact a line, names in a column."""
    shared, unit = document["shared"], document["unit"]
    prediction, switch = document["prediction"], document["switch_ms"]
    rows = [
        ("mode", _by(document["change"])),
        ("split", f"{_split(shared['split'])} {unit}s (prefill+decode) while both lanes work"),
        ("because", f"{shared['reason'] or '-'} [{shared['rule']}]"),
        ("at present", f"{_split(document['effective'])}"),
        ("policy", str(document["policy"])),
        ("off by", f"TTFT {_percent(prediction['ttft_error'])}, TPOT {_percent(prediction['tpot_error'])}"),
        ("switches", f"{switch['count']}, {_mean_ms(switch)} from decision to first step on average"),
        ("slo", observed_line(document["slo"])),
        ("possible", ", ".join(map(_split, document["possible"])) or "none: this device cannot be divided"),
    ]
    if shared["merged_tokens"]:
        rows[1] = ("split", f"none: merged steps of at most {shared['merged_tokens']} tokens")
    rows += [("history", _by(change)) for change in document["history"][-SHOWN_CHANGES:]]
    return [f"{name:<12}{text}" for name, text in rows]


def change_lines(answer: ChangeAnswer) -> list[str]:
    """The answer to a change, or to a dry run of one."""
    lines = [f"{'would be' if answer['dry_run'] else 'now'}: {_by(answer)}"]
    if answer["rounding"]:
        lines.append(f"rounded: {answer['rounding']}")
    if not answer["dry_run"]:
        lines.append(f"takes effect {answer['takes_effect']}")
    if forecast := answer["forecast"]:
        ttft, tpot = _ms(forecast["ttft_ms"]), _ms(forecast["tpot_ms"])
        lines.append(f"forecast for the work at hand: TTFT {ttft}, TPOT {tpot}")
    return lines


def levels_lines(answer: SloAnswer) -> list[str]:
    """GET /v1/slo: what the engine observes, then a line for each service class."""
    return [f"engine: {observed_line(answer)}", *slo_lines(answer)]


def observed_line(document: SloDocument) -> str:
    targets, observed = document["targets"], document["observed"]
    return (
        f"TTFT {_ms(observed['ttft_ms'])} of {_ms(targets['ttft_ms'])}, "
        f"TPOT {_ms(observed['tpot_ms'])} of {_ms(targets['tpot_ms'])} "
        f"({targets['percentile']:g} % of requests, last {targets['window_s']:g} s)"
    )


def _by(change: Change) -> str:
    at_s, expires_s = change["at_s"], change["expires_at_s"]
    parts = [str(change["mode"])]
    if change["granted"]:
        parts.append(_split(change["granted"]))
    if change["slo"]:
        given = (f"{name} {value:g}" for name, value in change["slo"].items() if value)
        parts.append("targets " + ", ".join(given))
    parts.append(f"by {change['actor']}")
    parts.append("since the start" if at_s is None else f"at {_clock(at_s)}")
    if expires_s is not None:
        parts.append(f"until {_clock(expires_s)}")
    return " ".join(parts) + (f": {change['reason']}" if change["reason"] else "")


def _split(split: Sequence[int]) -> str:
    return "+".join(map(str, split))


def _clock(at_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_s))


def _ms(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.4g} ms"


def _percent(frac: float | None) -> str:
    return "not known yet" if frac is None else f"{frac:.0%}"


def _mean_ms(histogram: MsHistogram) -> str:
    return _ms(histogram["sum_ms"] / histogram["count"]) if histogram["count"] else "-"
