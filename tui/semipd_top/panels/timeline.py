"""One request's life as lines: pure."""

from collections.abc import Sequence
from textwrap import wrap

from semipd.core.events import EventRow
from semipd.core.state.requests import RequestRow
from semipd_top.panels.listing import shown_state
from semipd_top.picture.event_text import describe, style_of
from semipd_top.text.charts import bar
from semipd_top.text.lines import EMPTY, Line, Span, line
from semipd_top.text.numbers import clock, count, duration, latency, millis

WORDS_AT = 36
"""Cells left of what an event's words are."""


def request_lines(record: RequestRow, width: int) -> list[Line]:
    """Facts, where its time went, and its events with the time since arrival and since the event before."""
    ended = record["error_code"] or record["finish_reason"]
    expected_s = record["expected_start_s"]
    lines = [
        line(
            Span(record["id"], "strong"),
            f"  {shown_state(record)}",
            f", {ended}" if ended else "",
            "" if expected_s is None else f", to be begun at {clock(expected_s)}",
        ),
        line(
            f"arrived {clock(record['arrived_at_s'])}, age {duration(record['age_ms'] / 1e3)}, "
            f"{record['priority']}",
            f", key {record['key']}" if record["key"] else "",
        ),
        line(
            f"prompt {count(record['prompt_tokens'])} tokens, {count(record['cached_tokens'])} cached, "
            f"output {count(record['output_tokens'])} of at most {count(record['max_tokens'])}"
        ),
        line(
            f"TTFT {latency(record['ttft_ms'])}, TPOT {latency(record['tpot_ms'])}, "
            f"{count(record['blocks'])} KV blocks, {count(record['preemptions'])} preemptions"
        ),
        EMPTY,
        *_phases(record, width),
        EMPTY,
    ]
    return lines + _events(record.get("events", ()), record["arrived_at_s"], width)


def _phases(record: RequestRow, width: int) -> list[Line]:
    """Queue, prefill and the rest as parts of its age."""
    age_ms = max(record["age_ms"], 1e-6)
    queue_ms = record["queue_ms"] if record["queue_ms"] is not None else age_ms
    prefill_ms = record["prefill_ms"]
    if prefill_ms is None:
        prefill_ms = age_ms - queue_ms if record["queue_ms"] is not None else 0.0
    decode_ms = max(age_ms - queue_ms - prefill_ms, 0.0)
    parts = [(queue_ms, "·", "warn"), (prefill_ms, "█", "prefill"), (decode_ms, "▒", "decode")]
    shares = bar([(min(ms / age_ms, 1.0), mark, style) for ms, mark, style in parts], width)  # type: ignore[misc]
    return [
        shares,
        line(
            Span("· ", "warn"),
            f"queued {latency(queue_ms)}  ",
            Span("█ ", "prefill"),
            f"prefill {latency(prefill_ms)}  ",
            Span("▒ ", "decode"),
            f"decode {latency(decode_ms)}",
        ),
    ]


def _events(events: Sequence[EventRow], arrived_s: float, width: int) -> list[Line]:
    lines = [line(Span(f"{'after ms':>9}{'+ ms':>9}  event", "dim"))]
    before_s = arrived_s
    for event in events:
        since_ms, gap_ms = (event["at_s"] - arrived_s) * 1e3, (event["at_s"] - before_s) * 1e3
        before_s = event["at_s"]
        kind = event["kind"].replace("_", " ")
        words = wrap(describe(event), max(width - WORDS_AT, 20)) or [""]
        lines.append(
            line(
                f"{millis(max(since_ms, 0)):>9}",
                Span(f"{millis(max(gap_ms, 0)):>9}  ", "dim"),
                Span(f"{kind:16}", style_of(event["kind"])),
                words[0],
            )
        )
        lines += [line(" " * WORDS_AT, more) for more in words[1:]]
    return lines
