"""The planner's answer for people."""

import math
from collections.abc import Mapping, Sequence

from semipd.plan.answer import Answer, Carried, Fleet
from semipd.plan.question import Question, percent
from semipd.plan.work import STEP
from semipd.sim.statistics import Interval


def answer_lines(answer: Answer) -> list[str]:
    question = answer.question
    lines = [
        *_head(question),
        "",
        f"What one GPU carries of this load, {percent(question.wanted)} within targets:",
    ]
    lines += _table(_CARRIED, [_carried_cells(row) for row in answer.carried])
    if question.rate:
        lines += ["", f"How many GPUs for {question.rate:.4g} requests/s:"]
        lines += _table(_FLEETS, [_fleet_cells(row) for row in _ordered(answer.fleets)])
        lines += ["", *_verdicts(answer)]
    else:
        lines += ["", "How many GPUs: the trace has no times; say how many requests per second with --rate."]
    if not answer.is_complete:
        lines += ["", "Not all of it was simulated."]
    return lines


def _head(question: Question) -> list[str]:
    case, trace = question.case, question.trace
    rows = trace.rows
    prompt, output = (
        sum(getattr(row, name) for row in rows) / len(rows) for name in ("prompt_tokens", "output_tokens")
    )
    targets = ", ".join(
        f"{one.targets}" if len(case.classes) == 1 else f"{one.name} {one.targets}" for one in case.classes
    )
    recorded = f", {trace.recorded_rate:.3g} requests/s as recorded" if trace.recorded_rate else ""
    lines = [
        f"Simulated, not measured: {case.model}, {case.profile or 'built-in'} profile, seeds "
        f"{question.seeds[0]} to {question.seeds[-1]}, {case.window_s:g} s of arrivals each or longer, "
        f"rates to {STEP:.0%}.",
        f"{trace.name}: {len(rows)} requests{recorded}, {prompt:.0f} prompt and {output:.0f} output tokens "
        f"on average; targets (TTFT/TPOT) {targets}.",
    ]
    if question.num_too_long:
        lines.append(
            f"Left out: {question.num_too_long} requests of over {case.longest} tokens, which nothing here "
            f"can serve."
        )
    if trace.num_unserved:
        lines.append(f"{trace.num_unserved} more requests came and were not served; the rate counts them.")
    return lines


_CARRIED = ("GPU", "policy", "requests/s [95 %]", "goodput/s", "TTFT p50/p99", "TPOT p50/p99", "split held")
_FLEETS = ("GPU", "policy", "GPUs", "within targets", "goodput/s", "TTFT p50/p99", "TPOT p50/p99", "")


def _carried_cells(row: Carried) -> list[str]:
    rate = "none" if not any(row.rates) else _interval(row.rate)
    return [
        row.gpu,
        row.policy,
        rate,
        _number(row.goodput_per_s),
        _ms(row.ttft_ms),
        _ms(row.tpot_ms),
        _split(row),
    ]


def _fleet_cells(row: Fleet) -> list[str]:
    known = [found for found in row.attainments if found is not None]
    within = f"{min(known):.1%}" if len(known) == len(row.attainments) else "too few"
    verdict = "enough" if row.is_enough else ""
    return [
        row.gpu,
        row.policy,
        str(row.num_gpus),
        within,
        _number(row.goodput_per_s),
        _ms(row.ttft_ms),
        _ms(row.tpot_ms),
        verdict,
    ]


def _verdicts(answer: Answer) -> list[str]:
    lines = []
    for row in answer.carried:
        needed = answer.needed(row.gpu, row.policy)
        counts = answer.question.counts
        tried = [one.num_gpus for one in answer.fleets if (one.gpu, one.policy) == (row.gpu, row.policy)]
        if needed is not None:
            found = f"{needed} of them" if needed > 1 else "one is enough"
        elif not any(row.rates):
            found = "none keeps these targets, however many there are"
        elif counts.stop - 1 in tried:
            found = f"{counts.stop - 1} are not enough; try more with --gpus"
        else:
            found = "not found out"
        lines.append(f"{row.gpu}, {row.policy}: {found}.")
    return lines


def _ordered(fleets: Sequence[Fleet]) -> list[Fleet]:
    return sorted(fleets, key=lambda row: (row.gpu, row.policy, row.num_gpus))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["  nothing is known yet"]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    ]
    return [f"  {line}".rstrip() for line in padded]


def _interval(found: Interval) -> str:
    bounds = f" [{max(found.low, 0.0):.3g}, {found.high:.3g}]" if math.isfinite(found.high) else ""
    return f"{found.mean:.3g}{bounds}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ms(found: Mapping[str, float]) -> str:
    return (
        "/".join(f"{value:,.{1 if value < 100 else 0}f}" for value in found.values()) + " ms"
        if found
        else "-"
    )


def _split(row: Carried) -> str:
    if not row.splits:
        return "whole GPU" if any(row.rates) else "-"
    return ", ".join(f"{split} {share:.0%}" for split, share in list(row.splits.items())[:2])
