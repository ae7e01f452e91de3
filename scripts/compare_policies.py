"""Compare partition policies and schedulers on request traces, on a simulated GPU.

    python scripts/compare_policies.py --traces FOLDER [--variants] [--out build/policies]

For each policy, workload and SLO: the highest rate that keeps 90 % attainment (bisection over ten-minute
windows), then mean end-to-end latency at given rates. Writes policies.md, results.json and two plots.
Every simulation is kept in --cache under a key of all its inputs and of the simulated code, so that a
broken-off run goes on where it was. --variants repeats the searches with the lanes' contention and the
memory bandwidth 30 % lower and higher.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from simlib.comparison import BUDGETS, RATE_FRACS, SPLITS, WORKLOADS, Plan, compare
from simlib.plots import draw, pyplot
from simlib.report import as_data, markdown

from semipd.core.errors import SemipdError
from semipd.sim.cases import Case

VARIANTS = (
    ("contention -30 %", {"contention": 0.7}),
    ("contention +30 %", {"contention": 1.3}),
    ("bandwidth -30 %", {"bandwidth": 0.7}),
    ("bandwidth +30 %", {"bandwidth": 1.3}),
)


def main() -> int:
    arguments = _parser().parse_args()
    began_s = time.monotonic()
    try:
        if not arguments.no_plots:
            pyplot()  # before an hour of work, not after
        plan = _plan(arguments)
        variants = VARIANTS if arguments.variants else ()
        comparison = compare(plan, variants, lambda line: print(line, file=sys.stderr, flush=True))
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message}\n{error.hint}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = markdown(comparison)
    (arguments.out / "policies.md").write_text(text)
    (arguments.out / "results.json").write_text(json.dumps(as_data(comparison), indent=1))
    if not arguments.no_plots:
        draw(comparison, arguments.out)
    print(text)
    print(f"{time.monotonic() - began_s:.0f} s on {plan.jobs} processes; written to {arguments.out}")
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    missing = [
        name for name in arguments.workloads if not (arguments.traces / WORKLOADS[name].file).is_file()
    ]
    if missing:
        files = ", ".join(WORKLOADS[name].file for name in missing)
        hint = "Name the folder with --traces, or choose others with --workloads."
        raise SemipdError("trace_not_found", f"{arguments.traces} has no {files}.", hint)
    base = Case(
        trace="",
        form="",
        policy="",
        rate=0.0,
        ttft_ms=0.0,
        tpot_ms=0.0,
        window_s=arguments.window,
        gpu=arguments.device.removeprefix("sim:"),
        model=arguments.model,
        profile=arguments.profile,
        bandwidth=arguments.bandwidth,
        contention=arguments.contention,
    )
    plan = Plan(
        traces=arguments.traces,
        cache=arguments.cache,
        base=base,
        workloads=tuple(arguments.workloads),
        slos=tuple(arguments.slos),
        budgets=tuple(arguments.budgets),
        splits=tuple(arguments.splits),
        step=arguments.step,
        coarse=max(1, round(arguments.coarse / arguments.step)),
        jobs=arguments.jobs,
        rate_fracs=tuple(arguments.rates),
        variant_window_s=arguments.variant_window,
    )
    return _quick(plan) if arguments.quick else plan


def _quick(plan: Plan) -> Plan:
    """The same paths in seconds: it shows that everything works, its figures mean nothing."""
    base = replace(plan.base, window_s=6.0)
    return replace(
        plan,
        variant_window_s=6.0,
        base=base,
        budgets=(512, 1024),
        splits=(32, 64),
        step=0.3,
        coarse=1,
        rate_fracs=(0.5, 1.0),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--traces", type=Path, required=True, help="folder with the trace files (docs/policies.md names them)"
    )
    add("--out", type=Path, default=Path("build/policies"))
    add("--cache", type=Path, default=Path("build/simulations"))
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--slos", nargs="+", choices=["paper", "tight"], default=["paper", "tight"])
    add("--budgets", nargs="+", type=int, default=list(BUDGETS), help="of the scheduler chunked")
    add("--splits", nargs="+", type=int, default=list(SPLITS), help="decode SMs of the fixed splits")
    add("--rates", nargs="+", type=float, default=list(RATE_FRACS), metavar="FRAC",
        help="rates of the latency table, as shares of tuned chunked's highest rate")  # fmt: skip
    add("--window", type=float, default=600.0, metavar="S", help="virtual seconds of arrivals per run")
    add("--variant-window", type=float, default=200.0, metavar="S", help="the same for --variants")
    add("--step", type=float, default=0.01, metavar="FRAC", help="resolution of rates")
    add("--coarse", type=float, default=0.1, metavar="FRAC", help="resolution for members that cannot win")
    add("--jobs", type=int, default=2, help="processes")
    add("--device", default="sim:h200")
    add("--model", default="llama-3-8b")
    add("--profile", default="", metavar="FILE", help="measured values in place of the built-in ones")
    add("--bandwidth", type=float, default=1.0, metavar="FACTOR")
    add("--contention", type=float, default=1.0, metavar="FACTOR")
    add("--variants", action="store_true", help="also with contention and bandwidth 30 %% lower and higher")
    add("--quick", action="store_true", help="a smoke run: short windows, few members, rates to 30 %%")
    add("--no-plots", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
