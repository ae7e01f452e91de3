"""Compare partition policies, schedulers and queue orders on request traces, on a simulated GPU.

    python scripts/compare_policies.py --traces FOLDER [--only code sharegpt] [--seeds 3] [--plan]

For each scenario (workload, model and targets) and column (policy and order): the highest rate that keeps
90 % attainment, then whole runs at and beyond the capacity of tuned chunked prefill. It says first how many
simulations that takes and how much processor time; --only, --columns, --seeds and --window cut it, --plan
stops there. Writes policies.md, results.json and two plots, and with --docs the tables into a document.
Every simulation is kept in --cache under a key of all its inputs and of the simulated code, so that a
broken-off comparison goes on where it was. --worlds repeats searches with other constants.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from simlib.comparison import compare
from simlib.plan import BASELINE, COLUMNS, LOADS, WORLD_COLUMNS, WORLD_SCENARIOS, Plan, forecast
from simlib.plots import draw, pyplot
from simlib.report import fill_in, write
from simlib.scenarios import SCENARIOS

from semipd.core.errors import SemipdError
from semipd.sim.cases import Case
from semipd.sim.policies import parse_policy
from semipd.sim.worlds import WORLDS

QUICK = ("mixed",)


def main() -> int:
    arguments = _parser().parse_args()
    began_s = time.monotonic()
    try:
        if not arguments.no_plots:
            pyplot()  # before an hour of work, not after
        plan = _plan(arguments)
        print("\n".join(forecast(plan)), file=sys.stderr, flush=True)
        if arguments.plan:
            return 0
        made = compare(plan, lambda line: print(line, file=sys.stderr, flush=True))
        page = write(made, arguments.out)
        if not arguments.no_plots:
            draw(made, arguments.images or arguments.out)
        if arguments.docs:
            fill_in(arguments.docs, made)
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message}\n{error.hint}", file=sys.stderr)
        return 2
    print(page)
    spent_s = time.monotonic() - began_s
    print(f"{spent_s:.0f} s on {plan.jobs} processes; written to {arguments.out}", file=sys.stderr)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    scenarios = tuple(arguments.only or (QUICK if arguments.quick else SCENARIOS))
    _check_traces(arguments.traces, scenarios)
    columns = tuple(dict.fromkeys([BASELINE, *arguments.columns]))
    base = Case(
        trace="",
        form="",
        policy="",
        rate=0.0,
        ttft_ms=0.0,
        tpot_ms=0.0,
        gpu=arguments.device.removeprefix("sim:"),
        profile=arguments.profile,
    )
    plan = Plan(
        traces=arguments.traces,
        cache=arguments.cache,
        base=base,
        scenarios=scenarios,
        columns=tuple(column for column in dict.fromkeys((*COLUMNS, *columns)) if column in columns),
        seeds=tuple(range(1, arguments.seeds + 1)),
        loads=tuple(arguments.loads),
        step=arguments.step,
        window_scale=arguments.window,
        budgets=tuple(arguments.budgets),
        splits=tuple(arguments.splits),
        worlds=tuple(arguments.worlds),
        world_scenarios=tuple(arguments.world_scenarios),
        world_columns=tuple(arguments.world_columns),
        jobs=arguments.jobs,
    )
    plan = _quick(plan) if arguments.quick else plan
    for column in dict.fromkeys((*plan.columns, *(plan.world_columns if plan.worlds else ()))):
        for scenario in plan.scenarios:
            parse_policy(plan.members(SCENARIOS[scenario], column)[0])  # before the work, not after an hour
    return plan


def _check_traces(folder: Path, scenarios: tuple[str, ...]) -> None:
    files = [SCENARIOS[name].source[0] for name in scenarios if not SCENARIOS[name].is_generated]
    missing = [file for file in dict.fromkeys(files) if not (folder / file).is_file()]
    if missing:
        hint = "Name the folder with --traces, or choose other scenarios with --only."
        raise SemipdError("trace_not_found", f"{folder} has no {', '.join(missing)}.", hint)


def _quick(plan: Plan) -> Plan:
    """The same paths in seconds: it shows that everything works, its figures mean nothing."""
    return replace(
        plan,
        seeds=plan.seeds[:2],
        window_scale=0.005,
        tuning_scale=1.0,
        budgets=(512, 1024),
        splits=(32, 64),
        step=0.3,
        loads=(1.0, 1.5),
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
    add("--images", type=Path, metavar="FOLDER", help="for the plots; default: as --out")
    add("--docs", type=Path, metavar="FILE", help="document whose marked tables are replaced")
    add("--cache", type=Path, default=Path("build/simulations"))
    add(
        "--only",
        nargs="+",
        choices=list(SCENARIOS),
        default=[],
        metavar="SCENARIO",
        help=", ".join(SCENARIOS),
    )
    add("--columns", nargs="+", default=list(COLUMNS), metavar="COLUMN",
        help=f"[N*]POLICY[+ORDER]; default: {', '.join(COLUMNS)}. {BASELINE} is always there")  # fmt: skip
    add("--seeds", type=int, default=3, metavar="N", help="of arrivals; two at least for intervals")
    add("--window", type=float, default=1.0, metavar="FACTOR", help="multiplies the scenarios' windows")
    add("--loads", nargs="+", type=float, default=list(LOADS), metavar="FACTOR",
        help=f"of whole runs, relative to the capacity of {BASELINE}")  # fmt: skip
    add("--step", type=float, default=0.02, metavar="FRAC", help="resolution of rates")
    add("--budgets", nargs="+", type=int, default=[], help="of chunked; default: the scenario's")
    add("--splits", nargs="+", type=int, default=[], help="decode SMs of fixed; default: the scenario's")
    add("--worlds", nargs="*", choices=list(WORLDS), default=[], metavar="WORLD", help=", ".join(WORLDS))
    add(
        "--world-scenarios",
        nargs="+",
        choices=list(SCENARIOS),
        default=list(WORLD_SCENARIOS),
        metavar="SCENARIO",
    )
    add("--world-columns", nargs="+", default=list(WORLD_COLUMNS), metavar="COLUMN")
    add("--jobs", type=int, default=2, help="processes")
    add("--device", default="sim:h200")
    add("--profile", default="", metavar="FILE", help="measured values in place of the built-in ones")
    add("--plan", action="store_true", help="say how much work it is, and stop")
    add("--quick", action="store_true", help="a smoke run: short windows, few members, rates to 30 %%")
    add("--no-plots", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
