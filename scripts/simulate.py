"""Replay a request trace through the engine on a simulated GPU, under a virtual clock.

    python scripts/simulate.py --trace azure_conv.csv --format azure --policy predictive --rate 8

Prints latencies, attainment and goodput (docs/policies.md says what they mean); --json saves them with
everything they depend on. The same arguments give the same figures.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from simlib.compiled import is_compiled

from semipd.core.errors import SemipdError
from semipd.sim.cases import Case, Result, run_case
from semipd.sim.outcomes import PERCENTILES
from semipd.sim.workloads.traces import READERS, read_trace
from semipd.sim.worlds import WORLDS

HOUR_S = 3600.0


def main() -> int:
    arguments = _parser().parse_args()
    try:
        case = _case(arguments)
        result = run_case(case)
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message}\n{error.hint}", file=sys.stderr)
        return 2
    print("\n".join(report(case, result)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"case": asdict(case), "result": result.to_json()}, indent=1))
    return 0


def _case(arguments: argparse.Namespace) -> Case:
    rate = arguments.rate or read_trace(arguments.trace, arguments.format).recorded_rate
    if not rate:
        message = f"{arguments.trace} has no arrival times."
        raise SemipdError("rate_missing", message, "Say how many requests arrive per second with --rate.")
    return Case(
        trace=str(arguments.trace),
        form=arguments.format,
        policy=arguments.policy,
        rate=rate,
        ttft_ms=arguments.ttft_ms,
        tpot_ms=arguments.tpot_ms,
        window_s=arguments.duration,
        seed=arguments.seed,
        gpu=arguments.device.removeprefix("sim:"),
        model=arguments.model,
        profile=arguments.profile,
        bandwidth=arguments.bandwidth,
        contention=arguments.contention,
        world=arguments.world,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        prefill_chunk_tokens=arguments.prefill_chunk_tokens,
    )


def report(case: Case, result: Result) -> list[str]:
    found = result.figures
    columns = ["mean", *(f"p{pct}" for pct in PERCENTILES)]
    lines = [
        f"{Path(case.trace).stem}, {case.policy}, {case.rate:g} requests/s and GPU for {case.window_s:g} s, "
        f"{case.model} on sim:{case.gpu}",
        f"requests     {found.num_requests}, {found.num_failed} failed, {result.num_preemptions} preemptions",
        f"attainment   {found.attainment:.1%} of all requests within {case.slo}",
        f"goodput      {found.goodput_per_s:.2f} requests/s",
        f"tokens       {found.output_tokens} out; {found.cached_tokens} prompt tokens from the prefix cache",
        f"ms           {''.join(f'{column:>11}' for column in columns)}",
    ]
    for name, values in (("TTFT", found.ttft_ms), ("TPOT", found.tpot_ms), ("end to end", found.e2e_ms)):
        lines.append(f"{name:<13}{''.join(f'{values.get(column, 0.0):11.2f}' for column in columns)}")
    if result.split_held_s:
        lines.append(f"split        {result.split_changes} changes; held " + _held(result.split_held_s))
    steps = f"{result.num_steps} steps{', compiled' if is_compiled() else ''}"
    lines.append(
        f"simulated in {result.wall_s:.1f} s ({result.cpu_s:.1f} s of one core, {steps}; an "
        f"hour at this rate: {result.cpu_s * HOUR_S / case.window_s:.0f} s)"
    )
    return lines


def _held(held_s: dict[str, float], most: int = 4) -> str:
    longest = sorted(held_s.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{split} {seconds:.0f} s" for split, seconds in longest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, help="file with the requests")
    add("--format", choices=sorted(READERS), required=True)
    add("--policy", default="predictive", help="prefill-first, chunked:TOKENS, fixed:DECODE_SMS, paper, "
        "predictive or 1p1d (two GPUs); +ORDER behind it, N* before it for N engines")  # fmt: skip
    add("--rate", type=float, default=0.0, help="requests per second and GPU; default: as recorded")
    add("--duration", type=float, default=600.0, metavar="S", help="virtual seconds of arrivals")
    add("--seed", type=int, default=0, help="0: a recorded trace as it is; else runs from random places")
    add("--ttft-ms", type=float, default=500.0)
    add("--tpot-ms", type=float, default=25.0)
    add("--device", default="sim:h200", help="sim:h200, sim:h100 or sim:a100")
    add("--model", default="llama-3-8b")
    add("--profile", default="", metavar="FILE", help="measured values in place of the built-in ones")
    add("--bandwidth", type=float, default=1.0, metavar="FACTOR", help="scales the memory bandwidth")
    add("--contention", type=float, default=1.0, metavar="FACTOR", help="scales the lanes' contention")
    add("--world", choices=list(WORLDS), default="default", help="what is assumed (docs/policies.md)")
    add("--max-model-len", type=int, default=131072)
    add("--max-num-seqs", type=int, default=256)
    add("--prefill-chunk-tokens", type=int, default=2048)
    add("--json", type=Path, metavar="FILE", help="also save the figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
