"""Each target beside its measured figure, as a page for docs/measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not yet measured"


def page(parts: Mapping[str, Mapping[str, Any]]) -> str:
    engine = parts.get("engine", {})
    latency, goodput = engine.get("latency", []), engine.get("goodput", [])
    rows = [
        ("tokens as the reference's", "all", _parity(parts.get("parity", {}))),
        ("decode step at batch 64, 2k context: share of copy bandwidth", ">= 0.85", _step(engine)),
        ("switch of the decode lane, mean (us)", "< 50", _switch(engine)),
        ("p99 inter-token latency beside prompts: semipd / best chunked", "<= 0.5", _latency(latency)),
        *(
            (f"goodput at {rate:g} requests/s: predictive / best chunked", ">= 1.5", _goodput(goodput, rate))
            for rate in sorted({row["rate"] for row in goodput}) or [4.0, 8.0, 12.0]
        ),
    ]
    lines = ["| target | wanted | measured |", "| --- | --- | --- |"]
    lines += [f"| {what} | {wanted} | {measured} |" for what, wanted, measured in rows]
    return "\n".join([*lines, "", "Those of single kernels stand on the page in `kernels/`."])


def _parity(part: Mapping[str, Any]) -> str:
    verdicts = {name: value for name, value in part.items() if isinstance(value, Mapping)}
    said = [
        f"{name}: {v['beyond']} of {v['tokens']:g} beyond, {v['allowed']} allowed"
        for name, v in verdicts.items()
    ]
    return "; ".join(said) or NOT_MEASURED


def _step(engine: Mapping[str, Any]) -> str:
    rows = engine.get("decode_steps", [])
    return f"{rows[0]['share of copy']} ({rows[0]['ms']} ms)" if rows else NOT_MEASURED


def _switch(engine: Mapping[str, Any]) -> str:
    switches = engine.get("state", {}).get("switches", {}).get("decode", {})
    return f"{switches['mean_us']:.1f}" if switches.get("count") else NOT_MEASURED


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    p99 = {row["engine"]: row["itl_p99_ms"] for row in rows if "itl_p99_ms" in row}
    return _ratio(_values(p99, "semipd"), _values(p99, "chunked"), min)


def _goodput(rows: Sequence[Mapping[str, Any]], rate: float) -> str:
    found = {row["engine"]: row["goodput_per_s"] for row in rows if row["rate"] == rate}
    return _ratio(_values(found, "semipd"), _values(found, "chunked"), max)


def _values(found: Mapping[str, float], kind: str) -> list[float]:
    return [value for name, value in found.items() if name.startswith(kind)]


def _ratio(ours: list[float], theirs: list[float], best: Any) -> str:
    if not ours or not theirs or not best(theirs):
        return NOT_MEASURED
    return f"{best(ours) / best(theirs):.2f} ({best(ours):g} / {best(theirs):g})"
