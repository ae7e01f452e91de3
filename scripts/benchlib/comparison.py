"""Medians of repeated runs, and the table that sets servers side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchlib.metrics import Summary
from benchlib.procfs import ProcessCpu


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One closed loop against one server. `processes` is empty when the server is not ours to look into;
    `fields`: what its requests carried beside prompt and max_tokens; `faults`: why the figures may not be
    comparable."""

    peer: str
    repetition: int
    concurrency: int
    summary: Summary
    processes: list[ProcessCpu]
    generator_cpu_s: float
    fields: dict[str, Any]
    faults: list[str]


@dataclass(frozen=True, slots=True)
class Medians:
    """Over the repetitions of one server at one concurrency. None: not measured. `ratio`: output tokens
    per second of the first server over this one's."""

    peer: str
    concurrency: int
    output_tokens_per_s: float
    ratio: float | None
    ttft_mean_ms: float | None
    ttft_p99_ms: float | None
    tpot_mean_ms: float | None
    itl_p99_ms: float | None
    cpu_s: float | None
    cpu_s_per_1000_tokens: float | None
    cpu_s_by_process: dict[str, float]
    faults: list[str]


def medians(runs: Sequence[PeerRun], first_peer: str) -> list[Medians]:
    """One row for each concurrency and server, ordered by concurrency, then as in `runs`. Ratios are to
    `first_peer`, which must be among them at every concurrency."""
    groups = dict[tuple[int, str], list[PeerRun]]()
    for run in runs:
        groups.setdefault((run.concurrency, run.peer), []).append(run)
    return [
        _median(peer, concurrency, group, _rate(groups[concurrency, first_peer]))
        for (concurrency, peer), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def _rate(runs: Sequence[PeerRun]) -> float:
    return statistics.median(run.summary.output_tokens_per_s for run in runs)


def _median(peer: str, concurrency: int, runs: Sequence[PeerRun], first_rate: float) -> Medians:
    summaries = [run.summary for run in runs]
    rate = _rate(runs)
    totals = [sum(process.cpu_s for process in run.processes) for run in runs if run.processes]
    tokens = [run.summary.output_tokens for run in runs if run.processes]
    return Medians(
        peer=peer,
        concurrency=concurrency,
        output_tokens_per_s=rate,
        ratio=first_rate / rate if rate else None,
        ttft_mean_ms=_middle([s.ttft_ms.mean for s in summaries if s.ttft_ms]),
        ttft_p99_ms=_middle([s.ttft_ms.p99 for s in summaries if s.ttft_ms]),
        tpot_mean_ms=_middle([s.tpot_ms.mean for s in summaries if s.tpot_ms]),
        itl_p99_ms=_middle([s.itl_ms.p99 for s in summaries if s.itl_ms]),
        cpu_s=_middle(totals),
        cpu_s_per_1000_tokens=_middle(
            [1000 * cpu_s / count for cpu_s, count in zip(totals, tokens, strict=True) if count]
        ),
        cpu_s_by_process=_by_process([run for run in runs if run.processes]),
        faults=list(dict.fromkeys(fault for run in runs for fault in run.faults)),
    )


def _by_process(runs: Sequence[PeerRun]) -> dict[str, float]:
    """Median of the sum over processes of one label."""
    sums = [dict[str, float]() for _ in runs]
    for run, totals in zip(runs, sums, strict=True):
        for process in run.processes:
            totals[process.label] = totals.get(process.label, 0.0) + process.cpu_s
    labels = dict.fromkeys(label for totals in sums for label in totals)
    return {label: statistics.median(totals.get(label, 0.0) for totals in sums) for label in labels}


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def markdown(rows: Sequence[Medians]) -> str:
    """Two tables: the figures, and where the CPU time went."""
    first = rows[0].peer
    lines = [
        f"| concurrency | server | output tok/s | {first} is x times | TTFT mean ms | TTFT p99 ms "
        "| TPOT mean ms | ITL p99 ms | CPU s | CPU s per 1000 tokens |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_figures_row(row) for row in rows]
    lines += ["", "| concurrency | server | CPU s by process |", "|--:|---|---|"]
    for row in rows:
        parts = ", ".join(f"{label} {cpu_s:.2f}" for label, cpu_s in row.cpu_s_by_process.items())
        lines.append(f"| {row.concurrency} | {row.peer} | {parts or 'not ours to measure'} |")
    faults = [f"* {row.peer} at {row.concurrency}: {fault}" for row in rows for fault in row.faults]
    return "\n".join([*lines, *(["", "Not comparable without a look:", "", *faults] if faults else [])])


def _figures_row(row: Medians) -> str:
    mark = "*" if row.faults else ""
    cells = [
        str(row.concurrency),
        row.peer + mark,
        f"{row.output_tokens_per_s:.1f}",
        _cell(row.ratio, 2),
        _cell(row.ttft_mean_ms, 1),
        _cell(row.ttft_p99_ms, 1),
        _cell(row.tpot_mean_ms, 2),
        _cell(row.itl_p99_ms, 1),
        _cell(row.cpu_s, 2),
        _cell(row.cpu_s_per_1000_tokens, 2),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
