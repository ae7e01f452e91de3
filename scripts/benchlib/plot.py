"""Four pictures of a run. matplotlib is imported when a plot is wanted, never otherwise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.load.records import Record
from benchlib.metrics import Slo
from semipd.command_line.pictures import load_matplotlib, save_figure


def save_plot(path: Path, records: Sequence[Record], slo: Slo, title: str) -> None:
    """A PNG (or what the suffix says). Raises SemipdError: `matplotlib_missing`, `cannot_write`."""
    canvas = load_matplotlib("--plot").Figure(figsize=(11, 7.5), layout="constrained")
    canvas.suptitle(title)
    (arrivals, ttft), (tpot, itl) = canvas.subplots(2, 2)
    ok = [record for record in records if record.outcome == "ok"]
    _over_time(arrivals, records)
    _cumulative(ttft, "TTFT", [r.ttft_s for r in ok], slo.ttft_ms)
    _cumulative(tpot, "TPOT", [r.tpot_s for r in ok], slo.tpot_ms)
    _cumulative(itl, "ITL", [gap for r in ok for gap in r.itl_s], None)
    save_figure(canvas, path)


def _over_time(axes: Any, records: Sequence[Record]) -> None:
    """TTFT of each request where it was sent; what did not end well on the ground line."""
    ok = [record for record in records if record.outcome == "ok" and record.ttft_s is not None]
    bad = [record for record in records if record.outcome not in ("ok", "cancelled")]
    axes.plot([r.sent_s for r in ok], [(r.ttft_s or 0) * 1e3 for r in ok], ".", markersize=4, label="TTFT")
    if bad:
        axes.plot([r.sent_s for r in bad], [0] * len(bad), "x", color="tab:red", label="not ok")
        axes.legend()
    axes.set(xlabel="sent at (s)", ylabel="TTFT (ms)", title="TTFT over the run")


def _cumulative(axes: Any, name: str, seconds: Sequence[float | None], target_ms: float | None) -> None:
    values = sorted(value * 1e3 for value in seconds if value is not None)
    axes.step(values, [(i + 1) / len(values) for i in range(len(values))], where="post")
    if target_ms is not None:
        axes.axvline(target_ms, color="tab:red", linestyle="--", label=f"target {target_ms:g} ms")
        axes.legend()
    axes.set(xlabel=f"{name} (ms)", ylabel="share of values", ylim=(0, 1.02), title=name)
