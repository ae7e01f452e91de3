"""PNG plots of a comparison."""

from importlib import import_module
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError
from semipd.sim.statistics import geometric, ratios
from simlib.comparison import Comparison
from simlib.plan import BASELINE


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


def draw(made: Comparison, folder: Path) -> list[Path]:
    """policies-capacity.png: capacities relative to the baseline's, with intervals. policies-overload.png:
    goodput over the load. Returns the paths."""
    plt = pyplot()
    paths = [folder / "policies-capacity.png", folder / "policies-overload.png"]
    for path, figure in zip(paths, (_capacity(plt, made), _overload(plt, made)), strict=True):
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return paths


def _capacity(plt: Any, made: Comparison) -> Any:
    plan = made.plan
    figure, axis = plt.subplots(figsize=(max(6.0, 1.3 * len(plan.scenarios)), 4.5))
    width = 0.8 / len(plan.columns)
    for idx, column in enumerate(plan.columns):
        places, means, below, above = [], [], [], []
        for place, scenario in enumerate(plan.scenarios):
            found = ratios(made.capacity[scenario, column], made.capacity[scenario, BASELINE])
            if found is None:
                continue
            value = geometric(found)
            single = len(found) == 1
            places.append(place + (idx - len(plan.columns) / 2 + 0.5) * width)
            means.append(value.mean)
            below.append(0.0 if single else value.mean - value.low)
            above.append(0.0 if single else value.high - value.mean)
        axis.bar(places, means, width=width, color=plt.cm.tab20(idx), label=column)
        axis.errorbar(places, means, yerr=[below, above], fmt="none", ecolor="#444444", linewidth=0.6)
    axis.axhline(1.0, color="black", linewidth=0.6)
    axis.set_xticks(range(len(plan.scenarios)), plan.scenarios, rotation=30, ha="right")
    axis.set_ylim(0, 3)
    axis.set_ylabel(f"capacity relative to tuned {BASELINE} (simulated)")
    axis.legend(fontsize="x-small", ncols=2)
    figure.tight_layout()
    return figure


def _overload(plt: Any, made: Comparison) -> Any:
    plan = made.plan
    rows = -(-len(plan.scenarios) // 4)
    figure, axes = plt.subplots(rows, min(len(plan.scenarios), 4), figsize=(14, 3.2 * rows), squeeze=False)
    for axis, scenario in zip(axes.flat, plan.scenarios, strict=False):
        for idx, column in enumerate(plan.columns):
            by_load = {load: made.goodput(scenario, column, load) for load in plan.loads}
            known = {load: sum(values) / len(values) for load, values in by_load.items() if values}
            axis.plot(
                list(known),
                list(known.values()),
                marker="o",
                markersize=3,
                color=plt.cm.tab20(idx),
                label=column,
            )
        axis.set_title(scenario, fontsize="small")
        axis.set_ylim(bottom=0)
    for axis in axes.flat[len(plan.scenarios) :]:
        axis.set_visible(False)
    axes[0][0].set_ylabel("goodput, requests/s and GPU (simulated)")
    axes[-1][0].set_xlabel(f"load relative to the capacity of tuned {BASELINE}")
    axes[0][0].legend(fontsize="xx-small")
    figure.tight_layout()
    return figure
