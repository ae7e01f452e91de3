"""The status document for people."""

from typing import Literal

from semipd.core.state.daemon import DrainState, EngineState, Status, StatusWithEngine
from semipd.core.state.engine import LaneNumbers
from semipd.core.state.partition import SloState

Rows = list[tuple[str, str]]


def status_lines(status: Status) -> list[str]:
    """One fact a line, names in a column. While no engine is ready its numbers are missing."""
    rows = _daemon_rows(status) + (_engine_rows(status) if "lanes" in status else [])
    return [f"{name:<13}{text}" for name, text in rows] + [f"note: {note}" for note in status["notes"]]


def slo_lines(slo: SloState) -> list[str]:
    """A line for each service class: what its requests saw, each value with its target behind it."""
    judged, itl_pct = slo["targets"]["percentile"], slo["targets"]["itl_percentile"]
    at: Literal["p50", "p90", "p99"] = "p50" if judged <= 50 else "p90" if judged <= 90 else "p99"
    lines = [f"{at} of the requests of the last {slo['targets']['window_s']:g} s; ITL: p{itl_pct:g} of each"]
    for name, levels in slo["classes"].items():
        targets, attained = levels["targets"], levels["attainment"]
        growth = targets["ttft_ms_per_1k_tokens"]
        lines.append(
            f"{name}: {'-' if attained is None else f'{attained:.1%}'} of {levels['requests']} met, "
            f"goodput {levels['goodput_rps']:.2f}/s, "
            f"TTFT {_of(levels['ttft_ms'][at], targets['ttft_ms'])}{f' + {growth:g}/1k' if growth else ''}, "
            f"TPOT {_of(levels['tpot_ms'][at], targets['tpot_ms'])}, "
            f"ITL {_of(levels['itl_ms'][at], targets['itl_ms'])}"
        )
    return lines


def _of(value_ms: float | None, target_ms: float) -> str:
    """`target_ms` 0: there is none."""
    shown = "-" if value_ms is None else f"{value_ms:.4g}"
    return f"{shown} of {target_ms:g} ms" if target_ms else f"{shown} ms"


def engine_text(engine: EngineState) -> str:
    """What becomes of the engine, from `engine` of status or a state frame."""
    parts = [str(engine["state"])]
    if engine["attempt"]:
        parts.append(f"attempt {engine['attempt']}")
    if engine["backoff_left_s"]:
        parts.append(f"in {engine['backoff_left_s']:.1f} s")
    if phase := engine["phase"]:
        parts.append(f"{phase['name']} for {phase['seconds']:.1f} of at most {phase['limit_s']:g} s")
    if engine["restarts"]:
        parts.append(f"restarted {engine['restarts']} times")
    return ", ".join(parts) + (f": {engine['why']}" if engine["why"] else "")


def drain_text(drain: DrainState) -> str:
    """The state of a drain in one line."""
    if drain["state"] == "serving":
        return "serving"
    text = f"{drain['state']} for {drain['actor']}: {drain['awaited']} requests under way"
    if drain["oldest_ms"] is not None:
        text += f", the oldest for {drain['oldest_ms'] / 1e3:.1f} s"
    if drain["seconds_left"] is not None:
        text += f"; they have {drain['seconds_left']:.0f} s"
    return text + (f"; {drain['ended']} had to be ended" if drain["ended"] else "")


def _daemon_rows(status: Status) -> Rows:
    model, device = status["model"], status["device_info"]
    counts = (f"{count} {what}" for what, count in sorted(status["totals"].items()))
    return [
        ("daemon", f"version {status['versions']['daemon']}, up {_duration(status['uptime_s'])}"),
        ("engine", engine_text(status["engine"])),
        ("model", f"{model['name']}, context {model['max_model_len'] or 'unknown'} tokens"),
        ("device", device["name"] if device else "not known yet"),
        ("drain", drain_text(status["drain"])),
        ("served", ", ".join(counts) or "nothing yet"),
        *[("slo", line) for line in slo_lines(status["slo"])],
    ]


def _engine_rows(status: StatusWithEngine) -> Rows:
    split, requests, prefix, kv = status["split"], status["requests"], status["prefix"], status["kv"]
    oldest_ms = requests["oldest_waiting_ms"]
    waited = "" if oldest_ms is None else f" (the oldest for {oldest_ms / 1000:.1f} s)"
    rows = [
        ("scheduler", status["scheduler"]),
        ("split", f"prefill {split['prefill']}, decode {split['decode']} ({split['unit']}s)"),
        (
            "requests",
            f"{requests['waiting']} waiting{waited}, {requests['background']} in the background, "
            f"{requests['prefilling']} prefilling, {requests['decoding']} decoding",
        ),
        (
            "KV blocks",
            f"{kv['used_blocks']} of {kv['total_blocks']} in use ({kv['block_tokens']} tokens each), "
            f"{kv['cached_blocks']} free ones hold reusable prefixes",
        ),
        ("prefix hits", f"{prefix['cached_tokens']} of {prefix['prompt_tokens']} prompt tokens"),
        ("preemptions", str(status["preemptions"])),
    ]
    return rows + [(f"lane {name}", _lane_text(lane)) for name, lane in status["lanes"].items()]


def _lane_text(lane: LaneNumbers) -> str:
    age_ms = lane["last_step_age_ms"]
    last = "never ran" if age_ms is None else f"last step {_duration(age_ms / 1000)} ago"
    return (
        f"{lane['steps']} steps, {lane['prefill_tokens']} prefill and {lane['decode_tokens']} decode tokens, "
        f"busy {_duration(lane['busy_ms'] / 1000)}, {last}"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"
