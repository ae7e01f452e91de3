"""What is drawn over time: one small sample for each state frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Way = Literal["split", "merged", "prefill only", "decode only", "idle", "unknown"]
"""How the units were used between two frames: both lanes at once, merged steps on all of them, one lane with
everything (the other one lends its units), or not at all."""


@dataclass(frozen=True, slots=True)
class LaneUse:
    """Between two frames; None: nobody knows. `step_ms`: mean time of the steps that ended."""

    busy_frac: float | None = None
    step_ms: float | None = None
    steps_per_s: float | None = None


NO_USE = LaneUse()


@dataclass(frozen=True, slots=True)
class Sample:
    """`split`: the units [prefill, decode] while both lanes have work."""

    at_s: float
    way: Way = "unknown"
    split: tuple[int, int] | None = None
    merged_tokens: int = 0
    prefill: LaneUse = NO_USE
    decode: LaneUse = NO_USE
    used_kv_frac: float | None = None
    ttft_ms: Mapping[str, float | None] | None = None
    tpot_ms: Mapping[str, float | None] | None = None
    attainment_frac: float | None = None
    goodput_rps: float | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    waiting: int | None = None


State = Mapping[str, Any]


def sample_of(state: State, before: State | None) -> Sample:
    """The sample of a frame. Rates compare it with the frame before, of the same engine's life."""
    if not state.get("lanes"):
        return Sample(at_s=state["at_s"])
    if before is not None and not _follows(state, before):
        before = None
    slo, kv, shared = state["slo"], state["kv"], state["partition"]["shared"]
    return Sample(
        at_s=state["at_s"],
        way=_way(state, before),
        split=(shared["split"][0], shared["split"][1]),
        merged_tokens=shared["merged_tokens"],
        prefill=_lane_use("prefill", state, before),
        decode=_lane_use("decode", state, before),
        used_kv_frac=kv["used_blocks"] / kv["total_blocks"],
        ttft_ms=slo["ttft_ms"],
        tpot_ms=slo["tpot_ms"],
        attainment_frac=slo["attainment"],
        goodput_rps=slo["goodput_rps"],
        prompt_tokens_per_s=state["throughput"]["prompt_tokens_per_s"],
        output_tokens_per_s=state["throughput"]["output_tokens_per_s"],
        waiting=state["requests"]["waiting"],
    )


def _follows(state: State, before: State) -> bool:
    """Counters go on: the same engine of the same daemon has counted both frames, some time apart."""
    lanes = before.get("lanes")
    return bool(
        lanes
        and state["at_s"] > before["at_s"]
        and state["uptime_s"] >= before["uptime_s"]
        and state["engine"]["restarts"] == before["engine"]["restarts"]
        and all(state["lanes"][name]["steps"] >= lane["steps"] for name, lane in lanes.items())
    )


def _way(state: State, before: State | None) -> Way:
    """From the kinds of steps that ended since the frame before; without one, from what is in flight."""
    if before is None:
        ran = {name for name, lane in state["lanes"].items() if lane["steps_in_flight"]}
    else:
        ran = {phase for phase in ("prefill", "decode", "merged") if _steps_between(phase, state, before)}
        # a step that ran under two splits teaches the models nothing, so they have not counted it
        ran = ran or {
            name for name, lane in state["lanes"].items() if lane["steps"] > before["lanes"][name]["steps"]
        }
    if "merged" in ran:
        return "merged"
    match "prefill" in ran, "decode" in ran:
        case True, True:
            return "split"
        case True, False:
            return "prefill only"
        case False, True:
            return "decode only"
    return "idle"


def _steps_between(phase: str, state: State, before: State) -> int:
    now, then = (frame["partition"]["prediction"]["steps"][phase]["steps"] for frame in (state, before))
    return int(now - then)


def _lane_use(name: str, state: State, before: State | None) -> LaneUse:
    if before is None:
        return NO_USE
    now, then = state["lanes"][name], before["lanes"][name]
    seconds = state["at_s"] - before["at_s"]
    steps, busy_ms = now["steps"] - then["steps"], now["busy_ms"] - then["busy_ms"]
    return LaneUse(
        busy_frac=min(busy_ms / 1e3 / seconds, 1.0),
        step_ms=busy_ms / steps if steps else None,
        steps_per_s=steps / seconds,
    )
