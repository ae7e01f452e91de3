"""semipd-client: generate text, chat, and watch what the daemon does, over its Unix socket. What --help needs
not is imported later."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from semipd import __version__
from semipd.command_line.answers import understood
from semipd.command_line.arguments import CommandParser, number, optional_path, whole_number
from semipd.command_line.completion import add_completion_command
from semipd.command_line.run import run_command
from semipd.command_line.streams import read_text, valid_text
from semipd.commands.status_text import slo_lines, status_lines
from semipd.core.errors import SemipdError
from semipd.core.events import EventRow
from semipd.core.slo import TARGET_BOUNDS
from semipd.core.state.daemon import Indicators, StateDocument, health

if TYPE_CHECKING:
    from semipd.client.blocking import Client

_OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "ignore_eos",
    "accept_late",
    "include_timing",
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_run, argv, lambda error: f"error: {error} [{error.code}]")


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> CommandParser:
    common = CommandParser(add_help=False)
    common.add_argument("--socket", type=optional_path, metavar="PATH", help="the daemon's Unix socket")
    common.add_argument("--json", action="store_true", help="print what the daemon sends, as JSON lines")
    sampling = _sampling_options()
    parser = CommandParser(prog="semipd-client", description="Talk to a running semipd daemon.")
    parser.add_argument("--version", action="version", version=f"semipd-client {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")

    generate = commands.add_parser("generate", parents=[common, sampling], help="continue a text")
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", help="the text to continue; -: read it from standard input")
    generate.add_argument("--chat", action="store_true", help="send the prompt as a user's message")

    chat = commands.add_parser(
        "chat",
        parents=[common, sampling],
        help="a conversation; from a pipe: one message, one answer",
    )
    chat.set_defaults(run=_chat)
    chat.add_argument("--system", help="a system message to begin with")

    status = commands.add_parser("status", parents=[common], help="show what the daemon does")
    status.set_defaults(run=_status)

    slo = commands.add_parser("slo", parents=[common], help="show targets and latencies by service class")
    slo.set_defaults(run=_slo)

    watch = commands.add_parser("watch", parents=[common], help="one line at each interval, until Ctrl-C")
    watch.set_defaults(run=_watch)
    watch.add_argument(
        "--interval", type=number(), default=1.0, metavar="SECONDS", help="0.1 to 60; default 1"
    )
    watch.add_argument("--count", type=whole_number(1), metavar="N", help="end after so many lines")
    watch.add_argument("--events", action="store_true", help="also a line for each event")
    add_completion_command(commands, parser)
    return parser


def _sampling_options() -> CommandParser:
    options = CommandParser(add_help=False)
    options.add_argument("--max-tokens", type=whole_number(), help="default: as many as the context holds")
    options.add_argument("--temperature", type=number())
    options.add_argument("--top-p", type=number())
    options.add_argument("--top-k", type=whole_number())
    options.add_argument("--seed", type=whole_number())
    options.add_argument("--stop", action="append", help="end before this text; may be repeated")
    options.add_argument("--ignore-eos", action="store_true", default=None)
    options.add_argument("--class", dest="service_class", metavar="NAME", help="service class of the request")
    for name in TARGET_BOUNDS:
        flag = "--" + name.replace("_", "-")
        options.add_argument(flag, type=number(), metavar="MS", help="in place of the class's; 0: no target")
    options.add_argument(
        "--accept-late", action="store_true", default=None, help="wait rather than be refused for being late"
    )
    options.add_argument(
        "--timing",
        action="store_true",
        default=None,
        dest="include_timing",
        help="print the request's times to standard error",
    )
    return options


@contextmanager
def _connected(args: argparse.Namespace) -> "Iterator[Client]":
    from semipd.client.blocking import Client
    from semipd.wire.address import default_socket_path

    path = args.socket or default_socket_path()
    with understood(path), Client.connect(path) as client:
        yield client


def _generate(args: argparse.Namespace) -> int:
    text = read_text() if args.prompt == "-" else args.prompt
    asked: dict[str, Any] = {"prompt": text}
    if args.chat:
        asked = {"messages": [{"role": "user", "content": text}]}
    with _connected(args) as client:
        _answer(client, asked, args, [])
    return 0


def _answer(client: "Client", asked: dict[str, Any], args: argparse.Namespace, pieces: list[str]) -> None:
    """Print an answer as it comes, and add its text to `pieces`."""
    options = {name: getattr(args, name) for name in _OPTIONS} | {"slo": _targets(args)}
    with client.generate(**asked, **options) as stream:
        for item in stream:
            line = json.dumps(item.to_wire(stream.id)) + "\n"
            print(line if args.json else item.text, end="", flush=True)
            pieces.append(item.text)
    if not args.json:
        print()
        if args.include_timing and item.usage is not None:
            print(_timing_line(item.usage["timing"]), file=sys.stderr)


def _targets(args: argparse.Namespace) -> dict[str, Any] | None:
    """The request's `slo`; None: nothing is said of it."""
    given = {name: getattr(args, name) for name in TARGET_BOUNDS} | {"class": args.service_class}
    return {name: value for name, value in given.items() if value is not None} or None


def _timing_line(timing: dict[str, Any]) -> str:
    shown = (
        f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in timing.items()
        if value is not None
    )
    return ", ".join(shown)


def _chat(args: argparse.Namespace) -> int:
    messages = [{"role": "system", "content": args.system}] if args.system else []
    with _connected(args) as client:
        if not sys.stdin.isatty():
            messages.append({"role": "user", "content": read_text()})
            _answer(client, {"messages": messages}, args, [])
            return 0
        print("Ctrl-C ends an answer, Ctrl-D the conversation.", file=sys.stderr)
        while (said := _ask_person()) is not None:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": _interruptible(client, messages, args)})
    return 0


def _ask_person() -> str | None:
    """A line that is not empty; None at the end."""
    while True:
        try:
            if said := valid_text(input("> ").strip(), "This line", sys.stdin.encoding):
                return said
        except EOFError:
            print()
            return None
        except SemipdError as error:
            print(error, file=sys.stderr)


def _interruptible(client: "Client", messages: list[dict[str, str]], args: argparse.Namespace) -> str:
    """The answer, or what had come of it."""
    pieces: list[str] = []
    try:
        _answer(client, {"messages": messages}, args, pieces)
    except KeyboardInterrupt:
        print(" [interrupted]")
    return "".join(pieces)


def _status(args: argparse.Namespace) -> int:
    with _connected(args) as client:
        status = client.status()
        print(json.dumps(status) if args.json else "\n".join(status_lines(status)))
    return 0


def _slo(args: argparse.Namespace) -> int:
    with _connected(args) as client:
        answer = client.slo()
        print(json.dumps(answer) if args.json else "\n".join(slo_lines(answer)))
    return 0


def _watch(args: argparse.Namespace) -> int:
    with _connected(args) as client:
        frames = client.subscribe(interval_ms=round(args.interval * 1000), events=args.events)
        for count, frame in enumerate(frames, start=1):
            for event in frame.events:
                print(json.dumps(event) if args.json else event_line(event))
            print(json.dumps(frame.state) if args.json else state_line(frame.state), flush=True)
            if count == args.count:
                break
    return 0


def state_line(state: StateDocument) -> str:
    """One line of `watch`: what an operator looks at first; a dash is what nobody knows."""
    requests, kv, split = state["requests"], state["kv"], state["split"]
    slo, rates = state["slo"], state["throughput"]
    used = None if kv is None else 100 * kv["used_blocks"] / kv["total_blocks"]
    attained = None if slo["attainment"] is None else 100 * slo["attainment"]
    return "  ".join(
        (
            f"{state['state']:8}",
            f"wait {_n(requests['waiting'])} prefill {_n(requests['prefilling'])} "
            f"decode {_n(requests['decoding'])}",
            f"in {rates['prompt_tokens_per_s']:6.0f} out {rates['output_tokens_per_s']:6.0f} tok/s",
            f"KV {_n(used)} %",
            f"split {split['prefill']}+{split['decode']}" if split else "split -",
            f"TTFT p90 {_n(slo['ttft_ms']['p90'], 5)} ms",
            f"TPOT p90 {_n(slo['tpot_ms']['p90'], 5, 1)} ms",
            f"attained {_n(attained)} %",
            _health(state["lamps"]),
        )
    )


def event_line(event: EventRow) -> str:
    facts = " ".join(f"{name}={value}" for name, value in event["data"].items())
    return f"  {event['kind']} {event['request_id'] or ''} {facts}".rstrip()


def _n(value: float | None, width: int = 3, digits: int = 0) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _health(indicators: Indicators) -> str:
    wrong = [name for name, ok in health(indicators) if not ok]
    return f"NOT OK: {', '.join(wrong)}" if wrong else "ok"


if __name__ == "__main__":
    sys.exit(main())
