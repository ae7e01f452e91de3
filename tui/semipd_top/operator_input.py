"""What a person types, as requests to the daemon; and what the answers mean. Pure."""

import re
from collections.abc import Sequence

from semipd.core.errors import SemipdError
from semipd.core.state.partition import ChangeAnswer, Forecast, SloTargets, TargetsDocument
from semipd.core.state.requests import RequestRow
from semipd_top.panels.split import DECODE, MERGED, PREFILL
from semipd_top.picture.why import is_late, is_slow
from semipd_top.text.charts import bar
from semipd_top.text.lines import Line, Span, Style, line
from semipd_top.text.numbers import duration, latency

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_expiry(text: str) -> float | None:
    """Seconds of `90`, `30s`, `10m`, `2h`, `1d`; None for `never`. Raises SemipdError(`invalid_value`)."""
    words = text.strip().lower()
    if words in ("", "never"):
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", words)
    if found is None or float(found[1]) <= 0:
        raise SemipdError(
            "invalid_value",
            f"{text!r:.40} is no duration.",
            "Write 30s, 10m, 2h, 1d, or never.",
            param="expires_s",
        )
    return float(found[1]) * _SECONDS[found[2]]


def parse_number(name: str, text: str, *, or_zero: bool = False) -> float:
    """Raises SemipdError(`invalid_value`)."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (value > 0 or (or_zero and value == 0)) or value == float("inf"):
        above = "0 or more" if or_zero else "above 0"
        raise SemipdError("invalid_value", f"{name}: {text!r:.40} is no number {above}.", param=name)
    return value


def stepped(prefill_units: int, possible: Sequence[Sequence[int]], step: int) -> int:
    """Prefill's units one possible split further up or down; at the end of the table as they are."""
    sizes = sorted(split[0] for split in possible)
    beyond = [size for size in sizes if (size - prefill_units) * step > 0]
    return prefill_units if not beyond else min(beyond) if step > 0 else max(beyond)


def split_bar(prefill_units: int, num_units: int, width: int) -> Line:
    """The split that is asked for."""
    frac = min(max(prefill_units / num_units, 0.0), 1.0)
    left = f"prefill {prefill_units:>3} "
    right = f" {max(num_units - prefill_units, 0):<3} decode"
    cells = bar([(frac, PREFILL, "prefill"), (1 - frac, DECODE, "decode")], width - len(left) - len(right))
    return line(Span(left, "prefill"), cells, Span(right, "decode"))


def merged_bar(width: int) -> Line:
    return bar([(1.0, MERGED, "merged")], width)


def preview_lines(answer: ChangeAnswer, auto: ChangeAnswer, targets: SloTargets) -> list[Line]:
    """A dry run's answer beside what the policy would do now."""
    granted = answer["granted"]
    way = f"granted {granted[0]}+{granted[1]} (prefill+decode)" if granted else "merged steps, no split"
    lines = [line(Span(way, "strong")), line(f"takes effect {answer['takes_effect']}")]
    if answer["rounding"]:
        lines.append(line(Span(answer["rounding"], "warn")))
    lines.append(_outlook("this", answer["forecast"], targets))
    lines.append(_outlook("auto", auto["forecast"], targets))
    return lines


def _outlook(name: str, forecast: Forecast | None, targets: SloTargets) -> Line:
    """What the work at hand would meet."""
    if forecast is None:
        return line(Span(f"{name:5}", "dim"), "no prediction yet: step times are still being learned")
    spans = [Span(f"{name:5}", "dim")]
    spans += _predicted("TTFT", forecast["ttft_ms"], targets["ttft_ms"])
    spans += _predicted("TPOT", forecast["tpot_ms"], targets["tpot_ms"])
    if num_late := forecast.get("late_prompts"):
        spans.append(Span(f"{num_late} prompts late", "bad"))
    return line(spans)


def _predicted(word: str, value_ms: float | None, target_ms: float) -> list[Span]:
    if value_ms is None:
        return [Span(f"{word} not in question  ", "dim")]
    style: Style = "ok" if value_ms <= target_ms else "bad"
    return [Span(f"{word} {latency(value_ms):>8} ", style), Span(f"(≤ {target_ms:g})  ", "dim")]


def slo_preview(rows: Sequence[RequestRow], targets: TargetsDocument, now_s: float, window_s: float) -> Line:
    """How many of the finished requests at hand would have met these targets."""
    judged = [row for row in rows if _is_judged(row) and now_s - _ended_s(row) <= window_s]
    if not judged:
        return line(Span("No finished request at hand to try these targets on.", "dim"))
    num_met = sum(_meets(row, targets) for row in judged)
    return line(
        Span(f"{num_met} of {len(judged)}", "strong"),
        f" finished requests at hand, of the last {duration(window_s)}, would have met all",
    )


def _is_judged(row: RequestRow) -> bool:
    return bool(row["state"] == "finished" and row["finish_reason"] != "cancelled")


def _ended_s(row: RequestRow) -> float:
    return float(row["arrived_at_s"]) + float(row["age_ms"]) / 1e3


def _meets(row: RequestRow, targets: TargetsDocument) -> bool:
    """A request of one token has no TPOT and passes it."""
    has_answer = row["ttft_ms"] is not None and not row["error_code"]
    return has_answer and not is_late(row, targets) and not is_slow(row, targets)
