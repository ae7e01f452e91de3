"""Latencies against their targets, attainment and goodput."""

from typing import Literal

from semipd.core.slo import BATCH_CLASS
from semipd.core.state.partition import ClassLevels, SloState, SloTargets
from semipd_top.panels.frame import framed, waiting
from semipd_top.picture.history import Sample
from semipd_top.picture.picture import Picture
from semipd_top.picture.why import late_line, slow_line
from semipd_top.text.charts import column_chart, sparkline
from semipd_top.text.lines import Line, Span, Style, line
from semipd_top.text.numbers import count, duration, latency, millis, percent, rate

Percentile = Literal["p50", "p90", "p99"]
PERCENTILES: tuple[Percentile, ...] = ("p50", "p90", "p99")
Latency = Literal["ttft_ms", "tpot_ms", "itl_ms"]
NAMES: tuple[tuple[Latency, str], ...] = (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"))
"""What every request of the class `default` has a target for."""

ITL: tuple[Latency, str] = ("itl_ms", "ITL")


def slo_panel(picture: Picture, width: int, height: int) -> list[Line]:
    if picture.state is None:
        return framed("SLO", (), waiting("Nothing is known yet."), width, height, action="app.slo")
    slo = picture.state["slo"]
    note = line(Span(f"p{slo['targets']['percentile']:g} over {duration(slo['targets']['window_s'])}", "dim"))
    names = _classes(slo)
    table = _class_table(slo, names, height - 2) if len(names) > 1 else _latency_table(slo, width)
    body = [*table, _attainment(slo), *_why(picture, slo)]
    body += _charts(picture, slo["targets"], width, height - 1 - len(body))
    return framed("SLO", note, body, width, height, action="app.slo")


def _classes(slo: SloState) -> list[str]:
    """Those that a person wants to know of: `batch` only while it is used. A daemon of before knows none."""
    classes = slo.get("classes", {})
    return [name for name, levels in classes.items() if name != BATCH_CLASS or levels["requests"]]


def _class_table(slo: SloState, names: list[str], room: int) -> list[Line]:
    """A row for each class: attainment, and latencies at the judged percentile. The last one says what there
    was no room for."""
    judged, wanted = judged_at(slo["targets"]["percentile"]), slo["targets"]["percentile"] / 100
    rows = [line(Span(f"{judged + ', ms':10}{'met':>6}{'of':>5}{'TTFT':>6}{'TPOT':>6}{'ITL':>6}", "dim"))]
    rows += [_class_row(name, slo["classes"][name], judged, wanted) for name in names]
    if len(rows) <= max(room, 2):
        return rows
    shown = rows[: max(room - 1, 1)]
    return [*shown, line(Span(f"and {len(rows) - len(shown)} more classes", "dim"))]


def _class_row(name: str, levels: ClassLevels, judged: Percentile, wanted: float) -> Line:
    """A latency that has no target is neither kept nor missed."""
    frac, targets = levels["attainment"], levels["targets"]
    kept: Style = "" if frac is None else "ok" if frac >= wanted else "bad"
    cells = [
        Span(f"{name:<10.10}"),
        Span(f"{percent(frac):>6}", kept),
        Span(f"{count(levels['requests']):>5}"),
    ]
    for key, _ in (*NAMES, ITL):
        value, target_ms = levels[key][judged], targets[key]
        style: Style = "dim" if not target_ms else "bad" if (value or 0.0) > target_ms else ""
        cells.append(Span(f"{millis(value):>6}", style))
    return line(*cells)


def _latency_table(slo: SloState, width: int) -> list[Line]:
    """Percentiles of all requests against the targets of the class `default`."""
    head = line(Span(f"{'ms':6}{'p50':>6}{'p90':>7}{'p99':>7}{'target':>8}", "dim"))
    shown = [*NAMES, ITL] if slo["targets"].get("itl_ms") else NAMES
    return [head, *(_latencies(slo, key, name, width) for key, name in shown)]


def judged_at(percentile: float) -> Percentile:
    """Of the percentiles that frames carry, the nearest to the target's from above."""
    return next((name for name in PERCENTILES if float(name[1:]) >= percentile), PERCENTILES[-1])


def _latencies(slo: SloState, key: Latency, name: str, width: int) -> Line:
    target_ms, judged = slo["targets"][key], judged_at(slo["targets"]["percentile"])
    cells: list[Span] = [Span(f"{name:6}")]
    for cell, percentile in zip((6, 7, 7), PERCENTILES, strict=True):
        value = slo[key][percentile]
        over: Style = "" if value is None or value <= target_ms else "bad" if percentile == judged else "warn"
        cells.append(Span(f"{millis(value):>{cell}}", over))
    cells.append(Span(f"{'≤ ' + format(target_ms, 'g'):>8} "))
    return line(cells, _verdict(slo[key][judged], target_ms, width))


def _verdict(value: float | None, target_ms: float, width: int) -> Span:
    if value is None:
        return Span("")
    kept = value <= target_ms
    word = (" kept" if kept else " missed") if width >= 44 else ""
    return Span(f"✔{word}", "ok") if kept else Span(f"✘{word}", "bad")


def _attainment(slo: SloState) -> Line:
    frac, wanted = slo["attainment"], slo["targets"]["percentile"] / 100
    style: Style = "" if frac is None else "ok" if frac >= wanted else "bad"
    return line(
        Span(percent(frac), style),
        f" of {count(slo['requests'])} met all, goodput {rate(slo['goodput_rps'])}/s",
    )


def _why(picture: Picture, slo: SloState) -> list[Line]:
    """Of each target that is missed, where the time went; with several classes, of all that is late, or
    slow."""
    targets, judged = slo["targets"], judged_at(slo["targets"]["percentile"])
    several = len(_classes(slo)) > 1
    found: list[Line | None] = []
    if several or (slo["ttft_ms"][judged] or 0.0) > targets["ttft_ms"]:
        found.append(late_line(picture, targets))
    if several or (slo["tpot_ms"][judged] or 0.0) > targets["tpot_ms"]:
        found.append(slow_line(picture, targets))
    return [words for words in found if words is not None]


def _charts(picture: Picture, targets: SloTargets, width: int, height: int) -> list[Line]:
    """The judged percentile of both over time: as many rows as there are, charts where there is room."""
    judged = judged_at(targets["percentile"])
    room = width - 11
    if height < 8:
        return [
            line(
                Span(f"{name} {judged} ", "dim"),
                sparkline(_series(picture, key, judged), room, "dim", targets[key]),
            )
            for key, name in NAMES[: max(height, 0)]
        ]
    num_rows = height // 2 - 1
    lines: list[Line] = []
    for key, name in NAMES:
        values = _series(picture, key, judged)
        top = max((value for value in values[-width:] if value is not None), default=None)
        lines.append(line(Span(f"{name} {judged} over time, at most {latency(top)}", "dim")))
        lines += column_chart(values, width, num_rows, "dim", targets[key])
    return lines


def _series(picture: Picture, key: Latency, judged: Percentile) -> list[float | None]:
    return [_latency(sample, key, judged) for sample in picture.samples]


def _latency(sample: Sample, key: Latency, judged: Percentile) -> float | None:
    values = sample.ttft_ms if key == "ttft_ms" else sample.tpot_ms
    return None if values is None else values[judged]
