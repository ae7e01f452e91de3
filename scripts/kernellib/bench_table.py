"""The Markdown of bench_kernels, from its records."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernellib.report.report_table import markdown_table
from kernellib.roofline import Roofline, rate, share
from kernellib.workloads import TARGETS, WORKLOADS, Workload

UNIT = {"memory": "GB/s", "compute": "TFLOP/s"}


def render(records: Sequence[Mapping[str, Any]], date: str, command: str) -> str:
    """The whole page, also of a run that was cut short."""
    device = next((record for record in records if record["kind"] == "device"), None)
    results = [record for record in records if record["kind"] == "result"]
    limits = rooflines(results)
    parts = [
        _head(device, date, command),
        _limits(limits),
        *(_operation(workload, results, limits) for workload in WORKLOADS),
        _targets(results, limits),
        _left_out(records),
    ]
    return "\n".join(part for part in parts if part)


def rooflines(results: Iterable[Mapping[str, Any]]) -> dict[int, Roofline]:
    """By SM count."""
    return {
        record["num_sms"]: Roofline(record["num_sms"], record["copy_gb_s"], record["matmul_tflop_s"])
        for record in results
        if record["key"].endswith("/roofline")
    }


def best_baseline(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """Name and time of the fastest."""
    baselines = record["baselines_us"]
    return min(baselines.items(), key=lambda item: item[1]) if baselines else None


def _head(device: Mapping[str, Any] | None, date: str, command: str) -> str:
    lines = [f"# Kernels on a GPU, {date}", "", f"`{command}`", ""]
    if device is not None:
        versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
        lines += [
            f"{device['device']}, {device['num_sms']} SMs, driver {device['driver']}, CUDA {device['cuda']}, "
            f"Python {device['python']}, {versions}.",
            "",
        ]
    lines += [
        "bfloat16, blocks of 16 tokens. Every kernel was compared with its reference before it was timed.",
        "Times are medians over replays of a captured graph; data sets that exceed the L2 cache take turns.",
        "Bytes and operations are the least the task needs. `*`: not captured, launch time may be in it.",
        "Lanes are green contexts; the largest is the whole device on a plain stream.",
        "",
    ]
    return "\n".join(lines)


def _limits(limits: Mapping[int, Roofline]) -> str:
    if not limits:
        return ""
    rows = [
        [str(sms), f"{limit.copy_gb_s:,.0f}", f"{limit.matmul_tflop_s:,.0f}"]
        for sms, limit in sorted(limits.items(), reverse=True)
    ]
    return "## Limits measured in this run\n\n" + markdown_table(
        ("SMs", "copy GB/s", "bf16 matmul TFLOP/s"), rows
    )


def _operation(
    workload: Workload, results: Iterable[Mapping[str, Any]], limits: Mapping[int, Roofline]
) -> str:
    mine = sorted(
        (record for record in results if record.get("workload") == workload.name),
        key=lambda record: -record["num_sms"],
    )
    if not mine:
        return ""
    unit = UNIT[workload.bound]
    header = ("SMs", "us", "spread", unit, "of this lane", "of the device", "torch us", "torch / ours")
    rows = [_row(workload, record, limits) for record in mine]
    return f"## {workload.name}\n\n{markdown_table(header, rows)}"


def _row(workload: Workload, record: Mapping[str, Any], limits: Mapping[int, Roofline]) -> list[str]:
    us = record["us"]
    whole = limits.get(max(limits)) if limits else None
    best = best_baseline(record)
    return [
        str(record["num_sms"]),
        f"{us:,.1f}{'' if record['graph'] else '*'}",
        f"{record['spread']:.0%}",
        f"{rate(workload.work, workload.bound, us):,.0f}",
        _share(workload, us, limits.get(record["num_sms"])),
        _share(workload, us, whole),
        f"{best[1]:,.1f} ({best[0]})" if best else "",
        f"{best[1] / us:.2f}" if best else "",
    ]


def _share(workload: Workload, us: float, limit: Roofline | None) -> str:
    return "" if limit is None else f"{share(workload.work, workload.bound, us, limit):.0%}"


def _targets(results: Sequence[Mapping[str, Any]], limits: Mapping[int, Roofline]) -> str:
    lines = [
        line
        for workload in WORKLOADS
        if workload.target
        for sms, wanted in TARGETS[workload.target].shares.items()
        for record in results
        if record.get("workload") == workload.name and record["num_sms"] == sms
        for line in [_target(workload, record, sms, wanted, limits)]
        if line
    ]
    return "## Targets\n\n" + "\n".join(lines) + "\n" if lines else ""


def _target(
    workload: Workload,
    record: Mapping[str, Any],
    sms: int,
    wanted: float,
    limits: Mapping[int, Roofline],
) -> str:
    best = best_baseline(record)
    if workload.target == "sdpa":
        reached = best[1] / record["us"] if best else None
    else:
        whole = limits.get(max(limits)) if limits else None
        reached = share(workload.work, workload.bound, record["us"], whole) if whole else None
    if reached is None:
        return ""
    verdict = "reached" if reached >= wanted else "missed"
    of = TARGETS[workload.target].of
    return f"- {verdict}: {workload.name} on {sms} SMs, {reached:.0%} of the {of}, wanted {wanted:.0%}"


def _left_out(records: Iterable[Mapping[str, Any]]) -> str:
    """Failures one by one; what time did not allow by lane."""
    failed = [
        f"- failed: {record.get('key', '')}: {record['error']}".replace(": : ", ": ")
        for record in records
        if record["kind"] in ("error", "note")
    ]
    skipped: dict[str, list[str]] = {}
    for record in records:
        if record["kind"] == "skipped":
            lane, _, name = record["key"].partition("/")
            skipped.setdefault(f"{lane} SMs, {record['error']}", []).append(name)
    lines = failed + [f"- not measured: {why}: {', '.join(names)}" for why, names in skipped.items()]
    return "## Left out\n\n" + "\n".join(lines) + "\n" if lines else ""
