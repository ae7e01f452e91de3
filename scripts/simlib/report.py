"""A comparison as Markdown tables and plain data."""

from dataclasses import asdict
from typing import Any

from simlib.comparison import FAMILIES, Comparison, Finding


def markdown(comparison: Comparison) -> str:
    parts = [
        _highest_rates(comparison),
        _fixed_splits(comparison),
        _claims(comparison),
        _latencies(comparison),
    ]
    parts += [_variants(comparison)] if comparison.variants else []
    return "\n\n".join(parts) + "\n"


def as_data(comparison: Comparison) -> dict[str, Any]:
    def listed(found: dict[tuple[str, str, str], dict[str, Finding]]) -> list[dict[str, Any]]:
        return [
            {"workload": workload, "slo": slo, "family": family, "policy": policy} | asdict(finding)
            for (workload, slo, family), members in found.items()
            for policy, finding in members.items()
        ]

    at_rates = [
        {"workload": workload, "slo": slo, "family": family} | row
        for (workload, slo, family), rows in comparison.at_rates.items()
        for row in rows
    ]
    return {
        "highest": listed(comparison.highest),
        "at_rates": at_rates,
        "variants": listed(comparison.variants),
    }


def _highest_rates(comparison: Comparison) -> str:
    plan = comparison.plan
    lines = [
        "Highest rate with 90 % attainment, requests/s and GPU (ratio to tuned chunked; chosen member):",
        "",
    ]
    lines += _header(["workload", "SLO", *FAMILIES])
    for workload in plan.workloads:
        for slo in plan.slos:
            reference = comparison.best(workload, slo, "chunked")[1].rate
            cells = [workload, str(plan.case(workload, slo).slo)]
            for family in FAMILIES:
                policy, found = comparison.best(workload, slo, family)
                ratio = f"{found.rate / reference:.2f}x" if reference else "-"
                chosen = f"; {policy.partition(':')[2]}" if ":" in policy else ""
                cells.append(f"{found.rate:.2f} ({ratio}{chosen})")
            lines.append(_row(cells))
    return "\n".join(lines)


def _fixed_splits(comparison: Comparison) -> str:
    plan = comparison.plan
    lines = ["Fixed splits by decode SMs; `<` marks an upper bound of a member that cannot be the best:", ""]
    lines += _header(["workload", "SLO", *map(str, plan.splits)])
    for workload in plan.workloads:
        for slo in plan.slos:
            found = comparison.highest[workload, slo, "fixed"]
            cells = [_bounded(found[f"fixed:{split}"], plan.step) for split in plan.splits]
            lines.append(_row([workload, str(plan.case(workload, slo).slo), *cells]))
    ratios = [f"{comparison.mean_ratio('fixed', f'fixed:{split}'):.2f}x" for split in plan.splits]
    lines.append(_row(["predictive over it", "geometric mean", *ratios]))
    return "\n".join(lines)


def _claims(comparison: Comparison) -> str:
    """What predictive should do, and whether it does."""
    plan = comparison.plan
    within, beats_paper = [], []
    for workload in plan.workloads:
        for slo in plan.slos:
            ours = comparison.best(workload, slo, "predictive")[1].rate
            fixed = comparison.best(workload, slo, "fixed")[1].rate
            within.append((ours / fixed if fixed else 1.0, workload, slo))
            beats_paper.append(ours >= comparison.best(workload, slo, "paper")[1].rate)
    lowest, workload, slo = min(within)
    single = min(comparison.mean_ratio("fixed", f"fixed:{split}") for split in plan.splits)
    paper = comparison.mean_ratio("paper", "paper")
    chunked = min(comparison.mean_ratio("chunked", f"chunked:{budget}") for budget in plan.budgets)
    return "\n".join(
        [
            f"* predictive over each workload's best fixed split, lowest: {lowest:.3f} ({workload}, {slo})",
            f"* predictive over the best single fixed split for all, geometric mean: {single:.3f}",
            f"* predictive over paper, geometric mean: {paper:.3f}; "
            f"at least as high in {sum(beats_paper)} of {len(beats_paper)} cases",
            f"* predictive over the best single chunked budget for all, geometric mean: {chunked:.3f}",
        ]
    )


def _latencies(comparison: Comparison) -> str:
    lines = ["Mean end-to-end latency, ms (attainment), at given rates per GPU:", ""]
    lines += _header(["workload", "requests/s", *FAMILIES])
    slo = comparison.plan.slos[-1]
    for workload in comparison.plan.workloads:
        columns = [comparison.at_rates[workload, slo, family] for family in FAMILIES]
        for rows in zip(*columns, strict=True):
            cells = [f"{row['mean_e2e_ms']:.0f} ({row['attainment']:.0%})" for row in rows]
            lines.append(_row([workload, f"{rows[0]['rate']:g}", *cells]))
    return "\n".join(lines)


def _variants(comparison: Comparison) -> str:
    lines = ["Highest rates in a changed world (members as tuned in the unchanged one):", ""]
    lines += _header(["workload", "world", "chunked", "fixed", "paper", "predictive"])
    worlds = dict.fromkeys((workload, world) for workload, world, _ in comparison.variants)
    for workload, world in worlds:
        cells = []
        for family in ("chunked", "fixed", "paper", "predictive"):
            found = comparison.variants[workload, world, family].values()
            cells.append(f"{max(finding.rate for finding in found):.2f}")
        lines.append(_row([workload, world, *cells]))
    return "\n".join(lines)


def _bounded(finding: Finding, step: float) -> str:
    """The rate, or a bound where the search stopped early."""
    exact = finding.lost_at <= finding.rate * (1.0 + step) * 1.001
    return f"{finding.rate:.2f}" if exact else f"<{finding.lost_at:.2f}"


def _header(cells: list[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
