"""How the device's units are divided now, why, what is predicted, and how it was."""

from collections.abc import Sequence
from textwrap import wrap

from semipd.core.state.device import DeviceState
from semipd.core.state.partition import PartitionState
from semipd_top.panels.frame import framed, waiting
from semipd_top.panels.header import engine_words
from semipd_top.picture.history import Sample
from semipd_top.picture.picture import Picture
from semipd_top.text.charts import EIGHTHS, bar, columns
from semipd_top.text.lines import EMPTY, Line, Span, Style, line, spread
from semipd_top.text.numbers import countdown, duration, latency, percent

PREFILL, DECODE, LENT, MERGED, PENDING, IDLE = "█", "▒", "░", "▞", "╱", "·"

GUTTER = 5
"""Cells left of the chart."""

LEGEND: tuple[tuple[str, Style, str], ...] = (
    (PREFILL, "prefill", "units of the prefill lane"),
    (DECODE, "decode", "units of the decode lane"),
    (LENT, "decode", "lent by a lane without work to the lane of this colour"),
    (MERGED, "merged", "merged steps: both phases in one step, on all units"),
    (PENDING, "warn", "will change hands"),
    (IDLE, "dim", "no work"),
)


def split_panel(picture: Picture, width: int, height: int) -> list[Line]:
    state = picture.state
    if state is None or state["partition"] is None or state["device"] is None:
        return framed("Split", (), _without_engine(picture, width, height - 1), width, height)
    sample, partition, device = picture.samples[-1], state["partition"], state["device"]
    divides = state["scheduler"] == "semipd"
    note = line(f"{device['num_units']} {device['unit']}s")
    body = [
        _mode(partition, picture.now_s, width) if divides else _one_lane(state["scheduler"]),
        _bar(partition, sample, device["num_units"], width, divides=divides),
        _now(partition, device, sample),
        *_why(partition, width, 2 if height > 7 else 1),
        _predicted(partition, picture.now_s),
    ]
    body += _history(picture, device["num_units"], width, height - 1 - len(body))
    return framed("Split", note, body, width, height, action="app.override")


def _without_engine(picture: Picture, width: int, height: int) -> list[Line]:
    """What happens to the engine, and what the split was."""
    if picture.state is None:
        return waiting("No daemon has told how the device is divided.")
    body = [line(Span(part)) for part in wrap(engine_words(picture.state["engine"]), max(width, 1))]
    if picture.state["device"] is not None and len(body) + 1 < height:
        num_units = picture.state["device"]["num_units"]
        body += [EMPTY, *_history(picture, num_units, width, height - len(body) - 1)]
    return body


def _one_lane(scheduler: str | None) -> Line:
    return line(Span("scheduler ", "dim"), Span(scheduler or "-", "strong"), ": one lane, nothing to divide")


def _mode(partition: PartitionState, now_s: float, width: int) -> Line:
    mode, change = partition["mode"], partition["change"]
    left: list[Span] = [Span("mode ", "dim"), Span(mode, "warn" if mode != "auto" else "strong")]
    if mode == "auto":
        left.append(Span(f", policy {partition['policy']}"))
    else:
        left.append(Span(_until(change["expires_at_s"], now_s), "strong"))
        left.append(Span(f", by {change['actor']}" + (f": {change['reason']}" if change["reason"] else "")))
    duty = f"both lanes busy {percent(partition['prefill_duty'])} of decode's time"
    return spread(tuple(left), line(Span(duty, "dim")), width) if width >= 100 else tuple(left)


def _until(expires_at_s: float | None, now_s: float) -> str:
    return " for ever" if expires_at_s is None else f" for {countdown(expires_at_s - now_s)}"


def pending_split(partition: PartitionState) -> tuple[int, int] | None:
    """An operator's split that no step has run under yet."""
    change = partition["change"]
    granted = change["granted"]
    if granted and change["effective_at_s"] is None and list(granted) != list(partition["effective"]):
        return granted[0], granted[1]
    return None


def _bar(partition: PartitionState, sample: Sample, total: int, width: int, *, divides: bool) -> Line:
    prefill, decode = (sample.split if divides else None) or (0, total)
    left, right = f"prefill {prefill:>3} ", f" {decode:<3} decode"
    cells = _cells(partition, sample, prefill, decode, total, width - len(left) - len(right))
    return line(Span(left, "prefill"), cells, Span(right, "decode"))


def _cells(
    partition: PartitionState, sample: Sample, prefill: int, decode: int, total: int, width: int
) -> Line:
    if sample.way == "merged":
        return bar([(1.0, MERGED, "merged")], width)
    if sample.way in ("idle", "unknown"):
        return bar([(prefill / total, IDLE, "prefill"), (decode / total, IDLE, "decode")], width)
    takes_over = pending_split(partition)
    moving = 0 if takes_over is None else takes_over[0] - prefill
    first: tuple[str, Style] = (LENT, "decode") if sample.way == "decode only" else (PREFILL, "prefill")
    second: tuple[str, Style] = (LENT, "prefill") if sample.way == "prefill only" else (DECODE, "decode")
    return bar(
        [
            ((prefill + min(moving, 0)) / total, *first),
            (abs(moving) / total, PENDING, "warn"),
            ((decode - max(moving, 0)) / total, *second),
        ],
        width,
    )


def _now(partition: PartitionState, device: DeviceState, sample: Sample) -> Line:
    total, unit = device["num_units"], f"{device['unit']}s"
    ways: dict[str, str] = {
        "split": "both lanes work, each on its own units",
        "merged": f"merged steps of at most {sample.merged_tokens} tokens on all {total} {unit}",
        "decode only": f"no prompt to compute: decode has all {total} {unit}",
        "prefill only": f"nothing to decode: prefill has all {total} {unit}",
        "idle": "idle",
        "unknown": "not known yet",
    }
    way = ways[sample.way]
    if sample.way == "merged" and not sample.merged_tokens:
        way = f"merged steps on all {total} {unit}"
    takes_over = pending_split(partition)
    if takes_over is None:
        return line(Span("now  ", "dim"), way)
    follows = f"{takes_over[0]}+{takes_over[1]} follows when both lanes have work"
    return line(Span("now  ", "dim"), way, "; ", Span(follows, "warn"))


def _why(partition: PartitionState, width: int, num_lines: int) -> list[Line]:
    words = wrap(partition["shared"]["reason"] or "-", max(width - 5, 1))
    marks = ["why  "] + ["     "] * num_lines
    return [line(Span(mark, "dim"), part) for mark, part in zip(marks, words[:num_lines], strict=False)]


def _predicted(partition: PartitionState, now_s: float) -> Line:
    decision, prediction = partition["decision"], partition["prediction"]
    if decision is None or decision["predicted_tpot_ms"] is None:
        learned = " ".join(f"{name} {phase['steps']}" for name, phase in prediction["steps"].items())
        return line(Span("predicted  ", "dim"), f"nothing yet; steps seen: {learned}")
    ttft, tpot = latency(decision["predicted_ttft_ms"]), latency(decision["predicted_tpot_ms"])
    errors = prediction["ttft_error"], prediction["tpot_error"]
    off = "" if None in errors else f"  (lately off by {percent(errors[0])} and {percent(errors[1])})"
    if partition["mode"] != "auto":
        age_s = now_s - (decision["at_s"] or now_s)
        off = f"  (by the policy, {duration(age_s)} ago; o previews another split)"
    return line(Span("predicted  ", "dim"), f"TTFT {ttft}, TPOT {tpot}", Span(off, "dim"))


def _history(picture: Picture, num_units: int, width: int, height: int) -> list[Line]:
    """The split over time, newest at the right, prefill's part from below; with a legend if there is room."""
    if height < 1 or width <= GUTTER:
        return []
    shown = picture.samples[-(width - GUTTER) :]
    num_rows = height - (height > 2)
    marks = [""] * num_rows
    marks[0], marks[-1] = (f"{num_units}", "0") if num_rows > 1 else ("", "past")
    lines = [
        line(
            Span(f"{mark:>{GUTTER - 1}} ", "dim"),
            _history_row(shown, num_units, row, num_rows, width - GUTTER),
        )
        for mark, row in zip(marks, reversed(range(num_rows)), strict=True)
    ]
    if num_rows < height:
        since = duration(shown[-1].at_s - shown[0].at_s)
        lines.append(spread(line(Span(f"{'':{GUTTER}}the last {since}", "dim")), _legend(), width))
    return lines


def _history_row(samples: Sequence[Sample], total: int, row: int, height: int, width: int) -> Line:
    def draw(sample: object) -> Span:
        assert isinstance(sample, Sample)
        match sample.way:
            case "merged":
                return Span(MERGED, "merged")
            case "decode only":
                return Span(LENT, "decode")
            case "prefill only":
                return Span(LENT, "prefill")
            case "split" if sample.split is not None:
                eighths = round(sample.split[0] / total * height * 8) - row * 8
                return Span(EIGHTHS[max(min(eighths, 8), 0)], "prefill", "decode")
            case "idle":
                return Span(IDLE if row == 0 else " ", "dim")
        return Span(" ")

    return columns(samples, width, draw)


def _legend() -> Line:
    return line(
        Span(PREFILL, "prefill"),
        " prefill  ",
        Span(PREFILL, "decode"),
        " decode  ",
        Span(LENT, "decode"),
        Span(LENT, "prefill"),
        " lent  ",
        Span(MERGED, "merged"),
        " merged",
    )
