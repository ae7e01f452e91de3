"""What is drawn over time: one small sample for each state frame."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from semipd.core.split import LaneName
from semipd.core.state.daemon import KvState, StateDocument
from semipd.core.state.engine import LaneDocument
from semipd.core.state.partition import PartitionState, Percentiles

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
    ttft_ms: Percentiles | None = None
    tpot_ms: Percentiles | None = None
    attainment_frac: float | None = None
    goodput_rps: float | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    waiting: int | None = None


class _Counted(NamedTuple):
    """A frame with the engine's numbers."""

    state: StateDocument
    lanes: dict[LaneName, LaneDocument]
    kv: KvState
    partition: PartitionState


def sample_of(state: StateDocument, before: StateDocument | None) -> Sample:
    """The sample of a frame. Rates compare it with the frame before, of the same engine's life."""
    now, then = _counted(state), _counted(before)
    if now is None:
        return Sample(at_s=state["at_s"])
    if then is not None and not _follows(now, then):
        then = None
    slo, kv, shared = state["slo"], now.kv, now.partition["shared"]
    return Sample(
        at_s=state["at_s"],
        way=_way(now, then),
        split=(shared["split"][0], shared["split"][1]),
        merged_tokens=shared["merged_tokens"],
        prefill=_lane_use("prefill", now, then),
        decode=_lane_use("decode", now, then),
        used_kv_frac=kv["used_blocks"] / kv["total_blocks"],
        ttft_ms=slo["ttft_ms"],
        tpot_ms=slo["tpot_ms"],
        attainment_frac=slo["attainment"],
        goodput_rps=slo["goodput_rps"],
        prompt_tokens_per_s=state["throughput"]["prompt_tokens_per_s"],
        output_tokens_per_s=state["throughput"]["output_tokens_per_s"],
        waiting=state["requests"]["waiting"],
    )


def _counted(state: StateDocument | None) -> _Counted | None:
    if state is None or state["lanes"] is None or state["kv"] is None or state["partition"] is None:
        return None
    return _Counted(state, state["lanes"], state["kv"], state["partition"])


def _follows(now: _Counted, then: _Counted) -> bool:
    """Counters go on: the same engine of the same daemon has counted both frames, some time apart."""
    state, before = now.state, then.state
    return (
        state["at_s"] > before["at_s"]
        and state["uptime_s"] >= before["uptime_s"]
        and state["engine"]["restarts"] == before["engine"]["restarts"]
        and all(now.lanes[name]["steps"] >= lane["steps"] for name, lane in then.lanes.items())
    )


def _way(now: _Counted, then: _Counted | None) -> Way:
    """From the kinds of steps that ended since the frame before; without one, from what is in flight."""
    ran: set[str]
    if then is None:
        ran = {name for name, lane in now.lanes.items() if lane["steps_in_flight"]}
    else:
        seen, seen_before = (frame.partition["prediction"]["steps"] for frame in (now, then))
        ran = {phase for phase, model in seen.items() if model["steps"] != seen_before[phase]["steps"]}
        # a step that ran under two splits teaches the models nothing, so they have not counted it
        ran = ran or {name for name, lane in now.lanes.items() if lane["steps"] > then.lanes[name]["steps"]}
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


def _lane_use(name: LaneName, now: _Counted, then: _Counted | None) -> LaneUse:
    if then is None:
        return NO_USE
    lane, before = now.lanes[name], then.lanes[name]
    seconds = now.state["at_s"] - then.state["at_s"]
    steps, busy_ms = lane["steps"] - before["steps"], lane["busy_ms"] - before["busy_ms"]
    return LaneUse(
        busy_frac=min(busy_ms / 1e3 / seconds, 1.0),
        step_ms=busy_ms / steps if steps else None,
        steps_per_s=steps / seconds,
    )
