"""Our daemon beside other OpenAI servers: same checkpoint, same prompts, alternating runs, medians.

    python scripts/bench_peers.py --json peers.json --markdown peers.md
    python scripts/bench_peers.py --peer semipd --peer transformers \\
        --peer "vllm=env VLLM_CPU_OMP_THREADS_BIND=0-1 vllm serve {model} --port {port}"
    python scripts/bench_peers.py --peer semipd --peer other=http://127.0.0.1:9000

It makes a random bfloat16 Llama, starts one server at a time, and runs a closed loop at each concurrency;
then the next server; and all of that again, in the opposite order. Ratios are to the first server named.
A server that runs already (NAME=URL) must serve the checkpoint that --checkpoint DIR keeps.
`transformers serve` needs: pip install 'transformers[serving]'.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import uvloop
from benchlib import report
from benchlib.checkpoint import LlamaShape, ensure_checkpoint, text_of
from benchlib.comparison import PeerRun, markdown, medians
from benchlib.load.load import LoadRun
from benchlib.load.progress import progress_bar
from benchlib.load.prompts import PromptMaker
from benchlib.load.workload import PlannedRequest
from benchlib.metrics import Slo, Summary, summarize
from benchlib.procfs import cpu_used, process_tree
from benchlib.servers import Peer, Serving, serving

from semipd.core.errors import SemipdError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
SLO = Slo(500.0, 50.0)
SEMIPD = (
    "{bin}/python -m semipd.commands.daemon start --model {model}"
    " --dtype bfloat16 --port {port} --socket {folder}/sock"
)
TRANSFORMERS = (
    "{bin}/transformers serve {model} --continuous-batching --dtype bfloat16 --host 127.0.0.1 --port {port}"
)
SHAPE = LlamaShape()
WARM_UP_TOKENS = 4
MIN_REQUESTS = 8
RUN_STRIDE = 1_000_000
"""More than the prompts of one run, so that no two runs share one."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.repetitions < 1 or args.rounds < 1 or args.output_tokens < 1 or args.prompt_tokens < 1:
            raise SemipdError("invalid_value", "Repetitions, rounds and token counts start at 1.")
        with (
            tempfile.TemporaryDirectory(prefix="semipd-bench-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_compare(args, Path(folder)))
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message} {error.hint}".rstrip(), file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    who = parser.add_argument_group("who")
    who.add_argument(
        "--peer",
        action="append",
        metavar="NAME[=URL|=COMMAND]",
        help="semipd, transformers, or another; {model}, {port}, {folder}, {bin} are filled into a command; "
        "may be repeated (default: semipd and transformers)",
    )
    who.add_argument("--semipd-args", default="", metavar="ARGS", help="more for `semipd-daemon start`")
    who.add_argument("--start-limit-s", type=float, default=300.0, help="for a server to serve (default 300)")
    who.add_argument("--checkpoint", type=Path, metavar="DIR", help="make the checkpoint here and keep it")

    what = parser.add_argument_group("what")
    what.add_argument("--concurrency", type=_levels, default=[1, 8, 32], metavar="C,...", help="(1,8,32)")
    what.add_argument("--prompt-tokens", type=int, default=512, help="of each request (default 512)")
    what.add_argument("--output-tokens", type=int, default=64, help="of each request (default 64)")
    what.add_argument("--rounds", type=int, default=4, help="requests per place of the loop (default 4)")
    what.add_argument("--repetitions", type=int, default=3, help="default 3")
    what.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    what.add_argument("--timeout-s", type=float, default=600.0, help="for one request (default 600)")

    out = parser.add_argument_group("figures")
    out.add_argument("--json", type=Path, metavar="FILE", help="every run")
    out.add_argument("--markdown", type=Path, metavar="FILE", help="the tables, which are printed anyway")
    return parser


def _levels(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8,32")
    return list(map(int, parts))


def _peers(args: argparse.Namespace) -> list[Peer]:
    built_in = {"semipd": f"{SEMIPD} {args.semipd_args}", "transformers": TRANSFORMERS}
    names = args.peer or list(built_in)
    return [Peer.parse(f"{name}={built_in[name]}" if name in built_in else name) for name in names]


async def _compare(args: argparse.Namespace, folder: Path) -> int:
    peers = _peers(args)
    model_dir = args.checkpoint or folder / "model"
    ensure_checkpoint(model_dir, SHAPE)
    runs = list[PeerRun]()
    for repetition in range(args.repetitions):
        # the opposite order every other time, so that a machine that slows down favours nobody
        for peer in peers if repetition % 2 == 0 else reversed(peers):
            _say(f"repetition {repetition + 1} of {args.repetitions}: {peer.name} starts")
            prompt = text_of(_ids(args, -1 - repetition, 1)[0])
            async with serving(peer, model_dir, folder, prompt, args.start_limit_s) as server:
                runs += [
                    await _one_level(args, peer, server, repetition, concurrency)
                    for concurrency in args.concurrency
                ]
    _publish(args, peers, runs)
    return 0


def _ids(args: argparse.Namespace, run: int, num_prompts: int) -> list[list[int]]:
    """Prompts of one run: the same for each server, and no two runs' alike, because of prefix caches."""
    maker = PromptMaker(SHAPE.vocab_size, args.seed)
    request = PlannedRequest(args.prompt_tokens, args.output_tokens)
    return [maker.prompt(run * RUN_STRIDE + index, request) for index in range(num_prompts)]


async def _one_level(
    args: argparse.Namespace, peer: Peer, server: Serving, repetition: int, concurrency: int
) -> PeerRun:
    """Warm up, then measure one closed loop."""
    number = 2 * (repetition * len(args.concurrency) + args.concurrency.index(concurrency))
    await _loop(args, server, number, concurrency, concurrency, WARM_UP_TOKENS)
    num_requests = max(MIN_REQUESTS, args.rounds * concurrency)
    before = process_tree(server.pid) if server.pid else {}
    run = await _loop(args, server, number + 1, concurrency, num_requests, args.output_tokens)
    after = process_tree(server.pid) if server.pid else {}
    summary = summarize(run.records, run.duration_s, SLO)
    _say(f"  {peer.name} at {concurrency}: {summary.output_tokens_per_s:.1f} output tokens/s")
    faults = _faults(run, summary)
    return PeerRun(
        peer.name, repetition, concurrency, summary, cpu_used(before, after), run.cpu_s, server.fields, faults
    )


async def _loop(
    args: argparse.Namespace,
    server: Serving,
    number: int,
    concurrency: int,
    num_requests: int,
    output_tokens: int,
) -> LoadRun:
    target = server.target()
    requests = [PlannedRequest(args.prompt_tokens, output_tokens)] * num_requests
    prompts = _ids(args, number, num_requests)
    prepared = [target.prepare(text_of(ids), output_tokens) for ids in prompts]
    run = LoadRun(requests, prepared, concurrency, args.timeout_s)
    async with progress_bar(run):
        await run.run()
    return run


def _faults(run: LoadRun, summary: Summary) -> list[str]:
    """Why this run may not be comparable with another server's."""
    found = [f"{count} requests ended with {code}" for code, count in summary.errors.items()]
    ok = [record for record in run.records if record.outcome == "ok"]
    if summary.without_usage:
        found.append(f"{summary.without_usage} answers had no usage: tokens are counted by stream events")
    if summary.short:
        lengths = sorted({record.output_tokens for record in ok})
        found.append(
            f"{summary.short} answers had {lengths[0]} to {lengths[-1]} tokens, not as many as asked"
        )
    if any(record.has_usage and record.prompt_tokens != record.asked_prompt_tokens for record in ok):
        lengths = sorted({record.prompt_tokens for record in ok})
        found.append(f"prompts were counted as {lengths[0]} to {lengths[-1]} tokens")
    if summary.cached_tokens:
        found.append(f"{summary.cached_tokens} prompt tokens came from a prefix cache")
    return found


def _publish(args: argparse.Namespace, peers: Sequence[Peer], runs: Sequence[PeerRun]) -> None:
    rows = medians(runs, first_peer=peers[0].name)
    text = (
        f"{args.prompt_tokens} prompt and {args.output_tokens} output tokens, "
        f"medians of {args.repetitions} runs.\n\n{markdown(rows)}\n"
    )
    print(text, end="")
    if args.markdown:
        report.write_text(args.markdown, text)
    if args.json:
        document = report.environment() | {
            "checkpoint": asdict(SHAPE),
            "prompt_tokens": args.prompt_tokens,
            "output_tokens": args.output_tokens,
            "peers": [asdict(peer) for peer in peers],
            "medians": [asdict(row) for row in rows],
            "runs": [asdict(run) for run in runs],
        }
        report.write_json(args.json, document)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
