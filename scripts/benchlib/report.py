"""A run's figures as text for people and as a document for programs."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchlib.load.load import LoadRun
from benchlib.metrics import Distribution, Summary, distribution_ms
from semipd import __version__
from semipd.core.errors import SemipdError

SCHEMA = 1
LATE_MS = 5.0
"""A generator that is later than this at its 99th percentile distorts what it measures."""


def environment() -> dict[str, Any]:
    """When, with what command, and on what the generator ran."""
    versions = {"semipd": __version__, "python": platform.python_version()}
    for package in ("uvloop", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
    }


def generator_facts(run: LoadRun) -> dict[str, Any]:
    """What says whether the generator itself was in the way, or helped."""
    lag = distribution_ms(run.loop_lags_s)
    return {
        "prompts_share_prefixes": any(request.block_hashes for request in run.requests),
        "cpu_s": run.cpu_s,
        "cpu_frac_of_a_core": run.cpu_s / run.duration_s if run.duration_s else 0.0,
        "loop_lag_p99_ms": lag.p99 if lag else None,
        "loop_lag_max_ms": lag.max if lag else None,
        "was_stopped": run.was_stopped,
    }


def warnings(summary: Summary, generator: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = list[str]()
    lag = summary.send_lag_ms
    if lag is not None and lag.p99 > LATE_MS:
        found.append(f"the generator sent late: p99 {lag.p99:.1f} ms, max {lag.max:.1f} ms behind the plan")
    if (generator["loop_lag_p99_ms"] or 0) > LATE_MS:
        found.append(f"the generator's event loop woke up late: p99 {generator['loop_lag_p99_ms']:.1f} ms")
    if summary.cached_tokens and not generator["prompts_share_prefixes"]:
        found.append("the prefix cache knew these prompts from an earlier run: give another --seed")
    if summary.short:
        found.append(f"{summary.short} requests ended well with another number of tokens than asked")
    if summary.without_usage:
        found.append(
            f"{summary.without_usage} answers had no usage: their tokens are counted by stream events"
        )
    elif summary.events < 0.95 * summary.output_tokens:
        per_event = summary.output_tokens / max(1, summary.events)
        found.append(f"a stream event brought {per_event:.2f} tokens on average: ITL is between events")
    if generator["was_stopped"]:
        found.append("the run was stopped before its end")
    return found


def text_report(summary: Summary, generator: dict[str, Any]) -> str:
    s = summary
    attainment = "-" if s.attainment_frac is None else f"{s.attainment_frac:.1%}"
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in s.outcomes.items())
    lines = [
        f"{s.sent} requests in {s.duration_s:.2f} s: {outcomes or 'none'}",
        *(f"  error {code}: {count}" for code, count in s.errors.items()),
        f"prompt tokens {s.prompt_tokens} ({s.cached_tokens} from the prefix cache), "
        f"output tokens {s.output_tokens}",
        f"throughput: {s.requests_per_s:.2f} requests/s, {s.prompt_tokens_per_s:.0f} prompt tokens/s, "
        f"{s.output_tokens_per_s:.0f} output tokens/s",
        f"SLO TTFT <= {s.slo.ttft_ms:g} ms, TPOT <= {s.slo.tpot_ms:g} ms: attainment {attainment} "
        f"of {s.arrived} arrived, goodput {s.goodput_rps:.2f} requests/s",
        "",
        *_table(s),
        "",
        f"generator: {generator['cpu_frac_of_a_core']:.1%} of a core, "
        f"event loop late by {generator['loop_lag_p99_ms'] or 0:.2f} ms at p99",
        *(f"warning: {warning}" for warning in warnings(summary, generator)),
    ]
    return "\n".join(lines)


def _table(summary: Summary) -> list[str]:
    rows = [
        ("TTFT", summary.ttft_ms),
        ("TPOT", summary.tpot_ms),
        ("ITL", summary.itl_ms),
        ("end to end", summary.e2e_ms),
        ("sent late", summary.send_lag_ms),
    ]
    head = f"{'ms':12}" + "".join(f"{name:>11}" for name in ("mean", "p50", "p90", "p99", "max"))
    return [head, *(f"{name:12}{_cells(values)}" for name, values in rows if values is not None)]


def _cells(values: Distribution) -> str:
    return "".join(f"{v:11.2f}" for v in (values.mean, values.p50, values.p90, values.p99, values.max))


def document(run: LoadRun, summary: Summary, **about: Any) -> dict[str, Any]:
    """Everything about one run; `about` is added at the top level."""
    generator = generator_facts(run)
    return {
        **environment(),
        **about,
        "results": summary.to_json(),
        "generator": generator,
        "warnings": warnings(summary, generator),
        "requests": [record.to_json() for record in sorted(run.records, key=lambda record: record.index)],
    }


def write_text(path: Path, text: str) -> None:
    """Raises SemipdError: `cannot_write`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SemipdError("cannot_write", f"{path} cannot be written: {error.strerror}.") from error


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")
