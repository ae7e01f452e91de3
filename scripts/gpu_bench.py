"""Policies compared on a GPU: Llama-3-8B shapes with random weights, prompts as token ids, published traces.

    python scripts/gpu_bench.py --trace FILE --form azure --out docs/measurements/YYYY-MM-DD-gpu-bench.json

For every policy: runs at rising rates, TTFT, TPOT, attainment and goodput; the best member of each family
against the best chunked budget. Takes hours; what minutes can tell, and the profile for the simulator, are
gpu_contact.py's.

The engine is driven without the daemon: TTFT excludes HTTP, tokenizing and the socket. Each family runs in a
process of its own under a time limit; JSON and Markdown are written after each.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

from gpulib import opening  # noqa: E402
from gpulib.parts import Part, Results, run_parts, save  # noqa: E402
from gpulib.policies import best_of_families, climb, policies  # noqa: E402

from semipd.core.slo import Targets  # noqa: E402
from semipd.sim.outcomes import Figures, figures  # noqa: E402
from semipd.sim.workloads.traces import READERS, read_trace, replay  # noqa: E402

if TYPE_CHECKING:
    from semipd.core.settings import EngineSettings
    from semipd.devices.contract import Device

FAMILIES = ("prefill-first", "chunked", "fixed", "paper", "predictive")
WHOLE_PROMPTS = 8192
BUDGETS = (256, 512, 1024, 2048)
BASE = opening.changed(
    opening.BASE,
    {
        "max_num_seqs": 256,
        "prefill_chunk_tokens": 2048,
        "step_token_budget": WHOLE_PROMPTS,
        "merge_tokens": 512,
        "max_model_len": 8192,
    },
)
DRAIN_S = 20.0
SETTLE_FACTOR = 1.5
"""A run may take so many times its arrivals' span; what has not ended then has missed its targets."""


def family(results: Results, name: str, args: argparse.Namespace) -> None:
    """Every member of a family at rising rates, on one device."""
    device = opening.open_random(args.model, BASE)
    try:
        slo = Targets(args.ttft_ms, tpot_ms=args.tpot_ms)
        splits = device.info.splits
        for policy in policies([name], BUDGETS, splits, WHOLE_PROMPTS):
            found = climb(args.rates, runner(device, policy.settings(BASE, slo), args, slo))
            results[policy.name] = {"best_rate": found.best_rate, "rows": found.rows}
        results["switches"] = device.stats()["switches"]
    finally:
        device.close()


def runner(
    device: "Device", settings: "EngineSettings", args: argparse.Namespace, slo: Targets
) -> Callable[[float], Figures]:
    from gpulib.host import Host

    from semipd.sim.workloads.prompts import request_of

    trace = read_trace(args.trace, args.form)
    longest = device.info.max_model_len

    def run(rate: float) -> Figures:
        arrivals = replay(trace, rate, args.window_s, args.seed)
        requests = [request_of(trace, arrival, device.info.vocab_size, slo) for arrival in arrivals]
        fitting = [r for r in requests if len(r.prompt) + r.params.max_tokens <= longest]
        host = Host(device, settings)
        served = host.run(fitting, args.window_s * SETTLE_FACTOR)
        host.drain(DRAIN_S)
        outcomes = list(served.outcomes.values())
        for outcome in outcomes:
            outcome.missed = not outcome.met
        return figures(outcomes, args.window_s, complete=True)

    return run


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True, help="file of a published trace")
    parser.add_argument("--form", default="azure", choices=sorted(READERS))
    parser.add_argument("--model", default="llama-3-8b", choices=("llama-3-8b", "small"))
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument(
        "--rates", type=_rates, default="2,4,6,8,12,16,20", help="requests per second, rising"
    )
    parser.add_argument("--window-s", type=float, default=30.0, help="arrivals of one run")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--tpot-ms", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=1800.0, help="of one family")
    parser.add_argument("--total-s", type=float, default=7200.0, help="of everything")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.json"))
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help="one part, in this process")
    return parser.parse_args(argv)


def _rates(text: str) -> list[float]:
    rates = [float(rate) for rate in text.split(",")]
    if not rates or min(rates) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds no rates above 0")
    return rates


def summary(parts: dict[str, Any]) -> list[dict[str, Any]]:
    found = {
        policy: (name, values["best_rate"])
        for name, part in parts.items()
        for policy, values in part.items()
        if isinstance(values, dict) and "best_rate" in values
    }
    return best_of_families(found)


def main() -> None:
    args = parse()
    if args.part:
        opening.prepare_process(os.environ)
        name, path = args.part
        results = Results(Path(path))
        family(results, name, args)
        return
    opening.refuse_without_cuda("gpu_bench.py")
    names = args.families.split(",")
    policies(names, BUDGETS, (), WHOLE_PROMPTS)  # a wrong name ends here, not after an hour
    read_trace(args.trace, args.form)
    again = [sys.executable, *sys.argv]
    parts = [Part(name, [*again, "--part", name], args.limit_s) for name in names]
    everything = run_parts(parts, args.out, f"GPU benchmark: {args.trace.stem}", args.total_s)
    everything["parts"]["summary"] = {
        "targets": f"{args.ttft_ms:g}/{args.tpot_ms:g} ms, attainment 90 %",
        "highest rates": summary(everything["parts"]),
    }
    save(everything, args.out)
    print(f"written to {args.out} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
