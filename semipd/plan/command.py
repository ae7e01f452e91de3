"""The command semipd-plan. What --help needs not is imported later: not the simulator."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semipd import __version__
from semipd.command_line.arguments import CommandParser, number, whole_number
from semipd.command_line.completion import SHELLS, print_completion
from semipd.command_line.exit_codes import DONE, EPILOG, INTERRUPTED
from semipd.command_line.run import run_command
from semipd.core.errors import SemipdError
from semipd.core.slo import Targets

if TYPE_CHECKING:
    from semipd.plan.answer import Answer
    from semipd.plan.question import Question

STANDARD_OUTPUT = Path("-")
MAX_GPUS = 256
_NEEDED = ("trace", "gpu", "model")

_EPILOG = f"""\
{EPILOG}
All figures are simulated: they are as good as the profile of the GPU. docs/operations.md, "How many GPUs?".
"""


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_command, argv, _text_of)


def _text_of(error: SemipdError) -> str:
    return f"error [{error.code}]: {error.message}" + (f"\n{error.hint}" if error.hint else "")


def _command(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.completion is not None:
        return print_completion(parser, args.completion)
    missing = [f"--{name}" for name in _NEEDED if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    _check_outputs(args)
    return _plan(args, _question(args))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="semipd-plan",
        description="What one GPU carries of a recorded load, and how many are needed, by simulation.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"semipd-plan {__version__}")
    parser.add_argument("--completion", choices=SHELLS, help="print a shell's completion script")
    _add_load(parser.add_argument_group("the load"))
    _add_servers(parser.add_argument_group("what serves it"))
    how = parser.add_argument_group("how closely")
    how.add_argument("--seeds", type=whole_number(1, 10), default=3, metavar="N", help="default: 3")
    how.add_argument(
        "--window",
        type=number(10.0, 86400.0),
        default=180.0,
        metavar="S",
        help="seconds of arrivals in each simulation, at least; default: 180",
    )
    how.add_argument(
        "--jobs", type=whole_number(1, 256), metavar="N", help="processes; default: one for each core"
    )
    out = parser.add_argument_group("the answer")
    out.add_argument("--json", type=Path, metavar="FILE", help="as JSON; -: to standard output, alone")
    out.add_argument("--png", type=Path, metavar="FILE", help="as a picture; needs matplotlib")
    return parser


def _add_load(load: argparse._ArgumentGroup) -> None:
    load.add_argument(
        "--trace", type=Path, metavar="FILE", help="of `semipd-daemon record`, or a public trace (needed)"
    )
    load.add_argument("--format", default="", metavar="NAME", help="of a public trace; default: by its look")
    load.add_argument(
        "--rate", type=number(0.001, 1e6), metavar="RPS", help="requests/s in all; default: as recorded"
    )
    load.add_argument(
        "--slo", type=_targets, metavar="TTFT/TPOT", help="targets in ms, as 500/25; default: the trace's"
    )
    load.add_argument(
        "--attainment",
        type=number(50.0, 99.9),
        default=90.0,
        metavar="PCT",
        help="of the requests must keep their targets, 50 to 99.9; default: 90",
    )


def _add_servers(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--gpu", nargs="+", metavar="NAME", help="h200, h100, a100 (needed)")
    what.add_argument("--model", metavar="NAME", help="such as llama-3-8b (needed)")
    what.add_argument("--profile", type=Path, metavar="FILE", help="measured values, see docs/policies.md")
    what.add_argument(
        "--gpus",
        type=_counts,
        default=range(1, 17),
        metavar="N..M",
        help="how many to consider; default: 1..16",
    )
    what.add_argument(
        "--policies",
        nargs="+",
        default=["predictive", "chunked"],
        metavar="NAME",
        help="predictive, paper, prefill-first, chunked[:TOKENS], fixed[:DECODE_SMS], each perhaps with "
        "+fcfs, +cost or +deadline; default: predictive chunked; what has no number is tuned",
    )


def _targets(text: str) -> Targets:
    """For argparse: TTFT/TPOT or TTFT/TPOT/ITL, in ms."""
    parts = text.split("/")
    if len(parts) not in (2, 3):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not TTFT/TPOT in ms, such as 500/25")
    values = [number(0.001, 1e9)(part) for part in parts]
    return Targets(ttft_ms=values[0], tpot_ms=values[1], itl_ms=values[2] if len(values) == 3 else None)


def _counts(text: str) -> range:
    """For argparse: N or N..M."""
    low, dots, high = text.partition("..")
    bound = whole_number(1, MAX_GPUS)
    found = range(bound(low), bound(high if dots else low) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r:.40} ends before it begins")
    return found


def _check_outputs(args: argparse.Namespace) -> None:
    """Before an hour of work, not after. Raises SemipdError: `matplotlib_missing`, `cannot_write`."""
    if args.png is not None:
        from semipd.command_line.pictures import load_matplotlib

        load_matplotlib("--png")
    for path in (args.json, args.png):
        if path in (None, STANDARD_OUTPUT):
            continue
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            message = f"{path} cannot be written."
            raise SemipdError("cannot_write", message, "Name a file in a folder of yours.")


def _question(args: argparse.Namespace) -> "Question":
    """Raises SemipdError for what cannot be known."""
    from semipd.config.config import default_engine_settings
    from semipd.plan.question import Question, base_case, families, usable_rows, with_targets

    profile = "" if args.profile is None else str(args.profile)
    wanted = args.attainment / 100
    case = base_case(args.trace, _form(args), args.model, args.gpu, profile, args.window)
    found = families(args.policies, args.gpu, default_engine_settings().order)
    trace, num_too_long = usable_rows(case, wanted)
    case = with_targets(case, trace, args.slo)
    return Question(
        case=case,
        trace=trace,
        num_too_long=num_too_long,
        gpus=tuple(dict.fromkeys(args.gpu)),
        families=found,
        rate=args.rate or trace.offered_rate,
        counts=args.gpus,
        seeds=tuple(range(1, args.seeds + 1)),
        wanted=wanted,
    )


def _form(args: argparse.Namespace) -> str:
    from semipd.sim.workloads.traces import READERS

    if args.format and args.format not in READERS:
        message = f"{args.format!r:.40} is no format of a trace."
        raise SemipdError("unknown_option", message, f"Known: {', '.join(READERS)}.")
    return str(args.format)


def _plan(args: argparse.Namespace, question: "Question") -> int:
    """What is known when Ctrl-C comes is shown all the same."""
    from semipd.plan.answer import Answer

    answer, code = Answer(question), DONE
    try:
        _simulate(answer, args.jobs or len(os.sched_getaffinity(0)))
    except KeyboardInterrupt:
        code = INTERRUPTED
    _show(args, answer)
    return code


def _simulate(answer: "Answer", num_jobs: int) -> None:
    import asyncio

    from semipd.plan.planning import Planner, processes

    with processes(num_jobs) as pool:
        asyncio.run(Planner(answer, pool, _progress()).run())


def _progress() -> Callable[[str], None]:
    """Lines on standard error, if somebody sees them."""
    began_s = time.monotonic()

    def say(line: str) -> None:
        if sys.stderr.isatty():
            print(f"[{time.monotonic() - began_s:6.1f} s] {line}", file=sys.stderr, flush=True)

    return say


def _show(args: argparse.Namespace, answer: "Answer") -> None:
    from semipd.plan.text import answer_lines

    if args.json is not None:
        document = json.dumps(answer.to_json(), indent=2)
        if args.json == STANDARD_OUTPUT:
            print(document)
        else:
            args.json.write_text(document + "\n")
    if args.json != STANDARD_OUTPUT:
        print("\n".join(answer_lines(answer)))
    if args.png is not None:
        from semipd.plan.picture import save_picture

        save_picture(answer, args.png)


if __name__ == "__main__":
    sys.exit(main())
