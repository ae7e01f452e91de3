"""PNG plots of a comparison."""

from importlib import import_module
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError
from simlib.comparison import FAMILIES, Comparison

COLOURS = dict(zip(FAMILIES, ("#999999", "#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#0072b2"), strict=True))


def pyplot() -> Any:
    """matplotlib, which nothing else here needs. Raises SemipdError(`matplotlib_missing`)."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        hint = "Install it (pip install matplotlib), or give --no-plots."
        raise SemipdError(
            "matplotlib_missing", "Plots need matplotlib, which is not installed.", hint
        ) from error
    matplotlib.use("Agg")
    return import_module("matplotlib.pyplot")


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """rates.png: highest rates. latency.png: mean end-to-end latency against the rate. Returns the paths."""
    plt = pyplot()
    paths = [folder / "rates.png", folder / "latency.png"]
    for path, figure in zip(paths, (_rates(plt, comparison), _latency(plt, comparison)), strict=True):
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return paths


def _rates(plt: Any, comparison: Comparison) -> Any:
    plan = comparison.plan
    figure, axes = plt.subplots(1, len(plan.slos), figsize=(6 * len(plan.slos), 4), squeeze=False)
    for axis, slo in zip(axes[0], plan.slos, strict=True):
        for idx, family in enumerate(FAMILIES):
            rates = [comparison.best(workload, slo, family)[1].rate for workload in plan.workloads]
            places = [place + (idx - len(FAMILIES) / 2) * 0.13 for place in range(len(rates))]
            axis.bar(places, rates, width=0.12, color=COLOURS[family], label=family)
        axis.set_xticks(range(len(plan.workloads)), plan.workloads)
        axis.set_title(f"{slo} targets")
        axis.set_ylabel("requests/s and GPU at 90 % attainment")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    return figure


def _latency(plt: Any, comparison: Comparison) -> Any:
    plan = comparison.plan
    figure, axes = plt.subplots(1, len(plan.workloads), figsize=(4 * len(plan.workloads), 4), squeeze=False)
    for axis, workload in zip(axes[0], plan.workloads, strict=True):
        for family in FAMILIES:
            rows = comparison.at_rates[workload, plan.slos[-1], family]
            rates, latencies = [row["rate"] for row in rows], [row["mean_e2e_ms"] / 1e3 for row in rows]
            axis.plot(rates, latencies, marker="o", markersize=3, color=COLOURS[family], label=family)
        axis.set_title(workload)
        axis.set_xlabel("requests/s and GPU")
        axis.set_yscale("log")
    axes[0][0].set_ylabel("mean end-to-end latency, s")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    return figure
