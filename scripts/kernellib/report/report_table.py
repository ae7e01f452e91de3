"""The report's Markdown."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from kernellib.report.facts import KIB, Facts, streaming_loops, violations, wide_frac

HEADER = (
    "case",
    "registers",
    "spills (B)",
    "shared (KiB)",
    "wide loads",
    "tensor cores",
    "async copies",
    "depth",
    "a turn",
)


def table(every: Iterable[Facts]) -> str:
    """One line per case, figures of the architectures side by side where they differ. "wide loads": of the
    bytes that the worst streaming loop loads, how many come in instructions of the promised width."""
    ordered = sorted(every, key=lambda facts: (facts.name.split("/")[0], facts.name, facts.arch))
    archs = " / ".join(f"sm_{arch}" for arch in sorted({facts.arch for facts in ordered}))
    rows = [_row(name, list(group)) for name, group in groupby(ordered, key=lambda facts: facts.name)]
    return markdown_table((f"case, {archs}", *HEADER[1:]), rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """First column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def verdict(every: Sequence[Facts], counted_archs: Iterable[int]) -> tuple[list[str], list[str]]:
    """Violations on architectures that count, and on those that are only reported: one line each."""
    counted = set(counted_archs)
    failed: list[str] = []
    noted: list[str] = []
    for facts in sorted(every, key=lambda facts: (facts.name, facts.arch)):
        for broken in violations(facts):
            (failed if facts.arch in counted else noted).append(f"{facts.name} sm_{facts.arch}: {broken}")
    return failed, noted


def _row(name: str, archs: list[Facts]) -> tuple[str, ...]:
    columns = zip(*map(_figures, archs), strict=True)
    return (name, *(" / ".join(column if len(set(column)) > 1 else column[:1]) for column in columns))


def _figures(facts: Facts) -> tuple[str, ...]:
    if facts.error:
        return ("does not compile", *[""] * (len(HEADER) - 2))
    return (
        str(facts.registers),
        str(facts.spill_bytes),
        f"{facts.shared_bytes / KIB:.1f}",
        _wide_loads(facts),
        ", ".join(f"{count} {name.split('.')[0]}" for name, count in sorted(facts.tensor_core_ops.items())),
        str(facts.async_copies or ""),
        "" if facts.async_depth is None else str(facts.async_depth),
        str(facts.turn_instructions or ""),
    )


def _wide_loads(facts: Facts) -> str:
    streaming = streaming_loops(facts.loads, facts.vector_bytes)
    if not facts.vector_bytes or not streaming:
        return ""
    worst = min(wide_frac(loads, facts.vector_bytes) for loads in streaming)
    return f"{worst:.0%} in {facts.vector_bytes} B"
