"""The planner's answer as a picture."""

import math
from pathlib import Path
from typing import Any

from semipd.command_line.pictures import load_matplotlib, save_figure
from semipd.plan.answer import Answer, Carried
from semipd.plan.question import percent


def save_picture(answer: Answer, path: Path) -> None:
    """What one GPU carries, and what becomes of the rate by the number of GPUs. Raises SemipdError:
    `matplotlib_missing`, `cannot_write`."""
    figure = load_matplotlib("--png").Figure(figsize=(11, 4.5), layout="constrained")
    question = answer.question
    figure.suptitle(f"Simulated: {question.case.model}, {question.trace.name}, seeds {list(question.seeds)}")
    carried, fleets = figure.subplots(1, 2)
    _draw_carried(carried, answer)
    _draw_fleets(fleets, answer)
    save_figure(figure, path)


def _draw_carried(axes: Any, answer: Answer) -> None:
    for place, row in enumerate(answer.carried):
        rate = row.rate
        half = rate.high - rate.mean if math.isfinite(rate.high) else 0.0
        axes.barh(place, rate.mean, xerr=[[min(half, rate.mean)], [half]])
    axes.set_yticks(range(len(answer.carried)), [_name(row) for row in answer.carried])
    axes.set_xlabel(f"requests/s on one GPU, {percent(answer.question.wanted)} within targets")


def _draw_fleets(axes: Any, answer: Answer) -> None:
    for row in answer.carried:
        own = [one for one in answer.fleets if (one.gpu, one.policy) == (row.gpu, row.policy)]
        known = sorted((one.num_gpus, min(a or 0.0 for a in one.attainments)) for one in own)
        axes.plot([num for num, _ in known], [share for _, share in known], marker="o", label=_name(row))
    axes.set_xticks(sorted({row.num_gpus for row in answer.fleets}))
    axes.axhline(answer.question.wanted, linestyle="--", linewidth=1)
    axes.set_xlabel(f"GPUs for {answer.question.rate:.4g} requests/s")
    axes.set_ylabel("share within targets, worst seed; 0: given up")
    if answer.fleets:
        axes.legend(fontsize="small")


def _name(row: Carried) -> str:
    return f"{row.gpu} {row.policy}"
