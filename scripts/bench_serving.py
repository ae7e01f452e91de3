"""Load for one server, and what it did with it: TTFT, TPOT, ITL, throughput, SLO attainment, goodput.

    python scripts/bench_serving.py --concurrency 8 --num-requests 64 --prompt-tokens 512 --output-tokens 64
    python scripts/bench_serving.py --rate 4 --num-requests 200 --prompt-tokens 128-1024 --json run.json
    python scripts/bench_serving.py --trace mooncake.jsonl --window 0:90 --speed 2 --plot run.png
    python scripts/bench_serving.py --socket --rate 4 --num-requests 100

Requests come at a trace's own times, or as a Poisson process (--rate), or as a closed loop
(--concurrency); their lengths are the trace's or made up. docs/benchmarks.md says what each figure means.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from benchlib import plot, report
from benchlib.load.load import LoadRun
from benchlib.load.progress import progress_bar
from benchlib.load.prompts import PromptMaker
from benchlib.load.targets import HttpTarget, ModelFacts, SocketTarget, Target
from benchlib.load.traces import read_trace
from benchlib.load.workload import (
    PlannedRequest,
    TokenRange,
    closed_loop,
    cut,
    made_up,
    poisson,
    without_long,
)
from benchlib.metrics import Slo, summarize

from semipd.command_line.pictures import load_matplotlib
from semipd.core.errors import SemipdError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
DEFAULT_URL = "http://127.0.0.1:8808"


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if problem := _conflict(args):
        parser.error(problem)
    try:
        if args.plot:
            load_matplotlib("--plot")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(args))
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message} {error.hint}".rstrip(), file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_argument_group("where to")
    where.add_argument("--url", help=f"an OpenAI server (default {DEFAULT_URL}); key in OPENAI_API_KEY")
    where.add_argument(
        "--socket", nargs="?", const="", metavar="PATH", help="the daemon's Unix socket instead of HTTP"
    )
    where.add_argument("--model", help="model's name in the requests (default: as /v1/models says)")
    where.add_argument("--vocab", type=_positive, help="vocabulary size (default: as the server says)")

    what = parser.add_argument_group("what")
    what.add_argument("--trace", type=Path, help="of `semipd-daemon record`; Azure 2023, Mooncake, ShareGPT")
    what.add_argument("--prompt-tokens", type=_tokens, metavar="N[-M]", help="without --trace (default 512)")
    what.add_argument("--output-tokens", type=_tokens, metavar="N[-M]", help="without --trace (default 64)")
    what.add_argument(
        "--num-requests", "--limit", type=_positive, metavar="N", help="how many; of a trace, the first N"
    )
    what.add_argument("--max-request-tokens", type=_positive, metavar="N", help="leave longer ones out")
    what.add_argument("--block-tokens", type=_positive, metavar="N", help="prompt tokens of a Mooncake hash")
    what.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    what.add_argument("--seed", type=int, default=0, help="of lengths, arrivals and prompts (default 0)")

    when = parser.add_argument_group("when")
    when.add_argument("--rate", type=_above_zero, metavar="R", help="Poisson arrivals, requests per second")
    when.add_argument("--concurrency", type=_positive, metavar="C", help="closed loop, C requests at once")
    when.add_argument("--speed", type=_above_zero, metavar="X", help="play a trace X times as fast")
    when.add_argument("--window", type=_window, metavar="A:B", help="only the trace's seconds A to B")
    when.add_argument("--timeout-s", type=_above_zero, default=600.0, help="for one request (default 600)")
    when.add_argument(
        "--warmup", type=_not_negative, default=1, metavar="N", help="uncounted first (default 1)"
    )

    out = parser.add_argument_group("figures")
    out.add_argument("--slo-ttft-ms", type=_above_zero, default=500.0, help="default 500")
    out.add_argument("--slo-tpot-ms", type=_above_zero, default=50.0, help="default 50")
    out.add_argument("--json", type=Path, metavar="FILE", help="everything, request by request")
    out.add_argument("--plot", type=Path, metavar="FILE", help="pictures as PNG; needs matplotlib")
    return parser


def _conflict(args: argparse.Namespace) -> str:
    """What is wrong with the options together; empty when nothing is."""
    if args.socket is not None and (args.url or args.model):
        return "--socket goes without --url and --model"
    if args.rate and args.concurrency:
        return "--rate and --concurrency exclude each other"
    if (args.rate or args.concurrency) and args.speed:
        return "--speed is for a trace's own times, not for --rate or --concurrency"
    if args.trace is not None:
        if args.prompt_tokens or args.output_tokens:
            return "a trace has lengths of its own: leave --prompt-tokens and --output-tokens out"
        return ""
    if args.window or args.speed or args.block_tokens:
        return "--window, --speed and --block-tokens need --trace"
    if not (args.rate or args.concurrency):
        return "say when: --trace, --rate or --concurrency"
    return "" if args.num_requests else "--num-requests is needed without --trace"


async def _measure(args: argparse.Namespace) -> int:
    requests, block_tokens, dropped = _plan(args)
    target = await _target(args)
    try:
        facts = await target.facts()
        prompts = PromptMaker(_vocab_size(args, facts), args.seed, block_tokens)
        await _warm_up(args, target, prompts, requests)
        prepared = [
            target.prepare(prompts.prompt(index, request), request.output_tokens)
            for index, request in enumerate(requests)
        ]
        run = LoadRun(requests, prepared, args.concurrency or 0, args.timeout_s)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, run.stop)
        async with progress_bar(run):
            await run.run()
    finally:
        await target.close()
    return _finish(args, run, facts, {"dropped": dropped, "block_tokens": block_tokens})


def _plan(args: argparse.Namespace) -> tuple[list[PlannedRequest], int, int]:
    """(requests, tokens of a hashed block, requests left out for their length). Raises SemipdError."""
    requests, block_tokens = _rows(args)
    num_before = len(requests)
    if args.max_request_tokens:
        requests = without_long(requests, args.max_request_tokens)
    dropped = num_before - len(requests)
    requests = requests[: args.num_requests]
    if args.rate:
        requests = poisson(requests, args.rate, args.seed)
    elif args.concurrency:
        requests = closed_loop(requests)
    return requests, block_tokens, dropped


def _rows(args: argparse.Namespace) -> tuple[list[PlannedRequest], int]:
    if args.trace is None:
        prompt = args.prompt_tokens or TokenRange(512, 512)
        output = args.output_tokens or TokenRange(64, 64)
        return made_up(args.num_requests, prompt, output, args.seed), 0
    trace = read_trace(args.trace, args.block_tokens or 0)
    has_times = trace.kind != "sharegpt"
    if has_times:
        return cut(trace.requests, args.window, args.speed or 1.0), trace.block_tokens
    if args.window or not (args.rate or args.concurrency):
        message = f"The trace {args.trace} has no times."
        raise SemipdError("trace_without_times", message, "Leave --window out and give --rate.")
    return trace.requests, trace.block_tokens


async def _target(args: argparse.Namespace) -> Target:
    fields: dict[str, Any] = {"temperature": args.temperature, "ignore_eos": True}
    if args.socket is not None:
        return await SocketTarget.connect(Path(args.socket) if args.socket else None, fields)
    fields["stream_options"] = {"include_usage": True}
    return HttpTarget(args.url or DEFAULT_URL, fields, args.model, os.environ.get("OPENAI_API_KEY", ""))


def _vocab_size(args: argparse.Namespace, facts: ModelFacts) -> int:
    if args.vocab or facts.vocab_size:
        return int(args.vocab or facts.vocab_size)
    raise SemipdError(
        "vocabulary_unknown", "The server does not say how large its vocabulary is.", "Give --vocab N."
    )


async def _warm_up(
    args: argparse.Namespace, target: Target, prompts: PromptMaker, requests: Sequence[PlannedRequest]
) -> None:
    """Requests like the first, one after the other, with prompts that the run does not use.

    Raises SemipdError when one does not end well: better now than after the run.
    """
    plain = [PlannedRequest(requests[0].prompt_tokens, requests[0].output_tokens)] * args.warmup
    prepared = [
        target.prepare(prompts.prompt(-1 - index, request), request.output_tokens)
        for index, request in enumerate(plain)
    ]
    run = LoadRun(plain, prepared, 1, args.timeout_s)
    await run.run()
    for record in run.records:
        if record.outcome != "ok":
            raise SemipdError(record.code, f"The warm-up request was {record.outcome}: {record.message}")


def _finish(args: argparse.Namespace, run: LoadRun, facts: ModelFacts, workload: dict[str, Any]) -> int:
    slo = Slo(args.slo_ttft_ms, args.slo_tpot_ms)
    summary = summarize(run.records, run.duration_s, slo)
    print(report.text_report(summary, report.generator_facts(run)))
    if args.json:
        server = {"model": facts.name, "max_model_len": facts.max_model_len, "versions": facts.versions}
        options = {name: str(value) for name, value in vars(args).items() if value is not None}
        workload |= {"planned": len(run.requests), "options": options}
        report.write_json(args.json, report.document(run, summary, server=server, workload=workload))
    if args.plot:
        plot.save_plot(args.plot, run.records, slo, f"{facts.name}: {len(run.records)} requests")
    return 0 if summary.outcomes.get("ok") else EXIT_FAILED


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _tokens(text: str) -> TokenRange:
    try:
        return TokenRange.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor N-M, tokens from 1 on") from error


def _window(text: str) -> tuple[float, float]:
    with suppress(ValueError):
        begin, end = map(float, text.split(":"))
        if 0 <= begin < end:
            return begin, end
    raise argparse.ArgumentTypeError(f"{text!r} is not A:B, seconds from A to B")


if __name__ == "__main__":
    sys.exit(main())
