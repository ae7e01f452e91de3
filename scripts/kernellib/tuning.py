"""What tune_kernels tries, and which result wins. Nothing here imports torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semipd_kernels.tuned import Config, Key, Table

from kernellib.report.report_table import markdown_table
from kernellib.workloads import Workload, decode_workload, prefill_workload

TUNED_OPS = ("decode_attention", "prefill_attention")
"""Each has `configs.choose` and `configs.candidates`."""

LEAST_GAIN = 0.02
"""A configuration replaces the one in use when it is so much faster; less is noise."""


def shapes(op: str, head_dim: int) -> tuple[Workload, ...]:
    """A configuration is judged by the geometric mean of its times on these. Heads as models of that head
    dimension have them."""
    heads = {64: (32, 8), 128: (32, 8), 256: (16, 4)}[head_dim]
    sizes = {"heads": heads[0], "kv_heads": heads[1], "head_dim": head_dim}
    if op == "decode_attention":
        return tuple(
            decode_workload(seqs, context, sizes) for seqs, context in ((64, 4096), (8, 16384), (32, 1024))
        )
    return tuple(
        prefill_workload(1, query_len, context, sizes) for query_len, context in ((8192, 8192), (1024, 16384))
    )


def score(times_us: Sequence[float]) -> float:
    """Geometric mean: a relative gain counts the same on every shape."""
    return math.exp(sum(map(math.log, times_us)) / len(times_us))


@dataclass(frozen=True, slots=True)
class Winner:
    """Of one operation, architecture, head dimension and SM count."""

    key: Key
    num_sms: int
    config: Config
    us: float
    current_us: float | None
    num_tried: int


def winners(records: Iterable[Mapping[str, Any]]) -> list[Winner]:
    """From results with `op`, `arch`, `head_dim`, `num_sms`, `config`, `current` (in use now) and `us`."""
    tried: dict[tuple[Key, int], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "result":
            key = Key(record["op"], record["arch"], record["head_dim"])
            tried.setdefault((key, record["num_sms"]), []).append(record)
    return [_winner(key, num_sms, results) for (key, num_sms), results in sorted(tried.items())]


def updated(table: Table, won: Iterable[Winner]) -> Table:
    """The table with the winners in place; other entries stay."""
    configs: dict[Key, dict[int, Config]] = {}
    for key, num_sms, config in table.entries():
        configs.setdefault(key, {})[num_sms] = config
    for winner in won:
        configs.setdefault(winner.key, {})[winner.num_sms] = winner.config
    return Table(configs)


def render(won: Iterable[Winner]) -> str:
    header = ("operation", "sm", "head dim", "SMs", "us before", "us", "gain", "tried", "configuration")
    return markdown_table(header, [_row(winner) for winner in won])


def _winner(key: Key, num_sms: int, results: Sequence[Mapping[str, Any]]) -> Winner:
    """The fastest; the one in use where that is as fast."""
    best = min(results, key=lambda record: score(record["us"]))
    current = next((record for record in results if record["current"]), None)
    current_us = None if current is None else score(current["us"])
    if current is not None and current_us is not None and score(best["us"]) > current_us * (1 - LEAST_GAIN):
        best = current
    return Winner(key, num_sms, best["config"], score(best["us"]), current_us, len(results))


def _row(winner: Winner) -> list[str]:
    before = winner.current_us
    return [
        winner.key.op,
        str(winner.key.arch),
        str(winner.key.head_dim),
        str(winner.num_sms),
        "" if before is None else f"{before:,.1f}",
        f"{winner.us:,.1f}",
        "" if before is None else f"{1 - winner.us / before:.0%}",
        str(winner.num_tried),
        ", ".join(f"{name} {value}" for name, value in winner.config.items()),
    ]
