"""The daemon's state at one moment: the frame that dashboards eat, and the same numbers as metrics."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from semipd import __version__
from semipd.config.sections import KvConfig
from semipd.core.split import LaneName, PartitionMode
from semipd.core.state.daemon import Indicators, KvHolder, KvState, RequestsState, StateDocument
from semipd.core.state.device import DeviceFacts, DeviceState
from semipd.core.state.engine import EngineStatus, LaneDocument, LaneNumbers, StepSizes
from semipd.core.state.partition import EnginePartition, PartitionState
from semipd.daemon.history.metrics import Histogram, MetricSample
from semipd.daemon.history.wall_times import with_wall_times

if TYPE_CHECKING:
    from semipd.daemon.state.daemon_state import DaemonState
    from semipd.daemon.state.services import Services

LOOP_LAG_LIMIT_S = 0.5

SLO_LABELS: dict[Literal["ttft_ms", "tpot_ms", "itl_ms"], str] = {
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "itl_ms": "itl",
}


def state_frame(state: "DaemonState", engine: EngineStatus | None) -> StateDocument:
    """One immutable snapshot. What only the engine knows is None while it does not answer."""
    ready = state.supervisor.ready
    return {
        "at_s": state.clock.time_s(),
        "uptime_s": state.uptime_s,
        "state": state.supervisor.state,
        "engine": state.supervisor.report(),
        "model": {"name": state.model_name, "max_model_len": ready.max_model_len if ready else None},
        "versions": {"daemon": __version__, "engine": ready.version if ready else None},
        "device": _device(state, engine),
        "split": engine["split"] if engine else None,
        "prefix": engine["prefix"] if engine else None,
        "preemptions": engine["preemptions"] if engine else None,
        "scheduler": engine["scheduler"] if engine else None,
        "lanes": _lanes(engine),
        "kv": _kv(state, engine),
        "last_split_change": state.last_split_change(),
        "partition": _partition(state, engine),
        "requests": _requests(state, engine),
        "drain": state.drain.to_wire(),
        "throughput": state.vitals.throughput(),
        "slo": state.slo.snapshot(state.classes.targets),
        "lamps": indicators(state, engine),
        "refused": dict(state.history.refused),
        "notes": list(ready.notes) if ready else [],
    }


def indicators(state: "DaemonState", engine: EngineStatus | None) -> Indicators:
    lag_s = state.vitals.loop_lag_s
    age_s = progress_age_s(engine)
    return {
        "process": {"ok": state.supervisor.state == "ready"},
        "loop": {
            "ok": engine is not None and lag_s < LOOP_LAG_LIMIT_S,
            "event_loop_lag_ms": lag_s * 1e3,
            "engine_answer_ms": state.vitals.answer_ms,
        },
        "progress": {
            "ok": age_s is not None and age_s < state.supervisor.supervision.stall_s,
            "age_ms": None if age_s is None else age_s * 1e3,
        },
    }


def progress_age_s(engine: EngineStatus | None) -> float | None:
    """How long the slowest step in flight has been under way; 0 without work, None: nobody knows."""
    return None if engine is None else engine["progress_age_ms"] / 1e3


def _device(state: "DaemonState", engine: EngineStatus | None) -> DeviceState | None:
    ready = state.supervisor.ready
    if ready is None:
        return None
    return {
        "kind": ready.info["kind"],
        "name": ready.info["name"],
        "unit": ready.info["unit"],
        "num_units": ready.info["num_units"],
        "dtype": ready.info["dtype"],
        "memory": ready.info["memory"],
        "stats": engine["device"] if engine else None,
    }


def _lanes(engine: EngineStatus | None) -> dict[LaneName, LaneDocument] | None:
    return None if engine is None else {name: _lane(lane) for name, lane in engine["lanes"].items()}


def _lane(lane: LaneNumbers) -> LaneDocument:
    """Without the sizes of its steps, which are for the metrics."""
    return {
        "steps": lane["steps"],
        "slow_steps": lane["slow_steps"],
        "steps_in_flight": lane["steps_in_flight"],
        "residents": lane["residents"],
        "prefill_tokens": lane["prefill_tokens"],
        "decode_tokens": lane["decode_tokens"],
        "busy_ms": lane["busy_ms"],
        "last_step_age_ms": lane["last_step_age_ms"],
        "step_age_ms": lane["step_age_ms"],
    }


def _kv(state: "DaemonState", engine: EngineStatus | None) -> KvState | None:
    """The pool's numbers, and who holds most of it."""
    if engine is None:
        return None
    holders: list[KvHolder] = [
        {
            "id": record.request_id,
            "state": record.state,
            "blocks": state.history.blocks_of(record),
            "tokens": record.tokens,
            "priority": record.priority,
        }
        for record in state.history.holders()
    ]
    return {**engine["kv"], "holders": holders}


def _partition(state: "DaemonState", engine: EngineStatus | None) -> PartitionState | None:
    """Without the engine's view of the service levels: the frame's own is what clients see."""
    if engine is None:
        return None
    partition = with_wall_times(engine["partition"], state.clock)
    return {
        "mode": partition["mode"],
        "policy": partition["policy"],
        "change": partition["change"],
        "shared": partition["shared"],
        "effective": partition["effective"],
        "decision": partition["decision"],
        "prefill_duty": partition["prefill_duty"],
        "prediction": partition["prediction"],
        "switch_ms": partition["switch_ms"],
    }


def _requests(state: "DaemonState", engine: EngineStatus | None) -> RequestsState:
    numbers = engine["requests"] if engine else None
    return {
        "waiting": numbers["waiting"] if numbers else None,
        "background": numbers["background"] if numbers else None,
        "prefilling": numbers["prefilling"] if numbers else None,
        "decoding": numbers["decoding"] if numbers else None,
        "oldest_waiting_ms": numbers["oldest_waiting_ms"] if numbers else None,
        "live": len(state.table),
        "held": state.table.num_held,
        "suspects": state.table.num_suspects,
        "totals": dict(state.table.totals),
    }


def state_samples(services: "Services", engine: EngineStatus | None) -> Iterator[MetricSample]:
    """Metrics of this moment. Those of a silent engine are left out rather than repeated."""
    yield MetricSample("semipd:engine_up", engine is not None)
    yield MetricSample("semipd:live_requests", len(services.table))
    yield MetricSample("semipd:event_loop_lag_seconds", services.vitals.loop_lag_s)
    yield from _slo_samples(services)
    yield MetricSample("semipd:engine_deaths", services.history.engine_deaths)
    for lane in ("prefill", "decode"):
        yield MetricSample("semipd:worker_deaths", services.history.worker_deaths[lane], (lane,))
    yield MetricSample("semipd:requests_resumed", services.history.resumptions)
    yield MetricSample("semipd:ignored_fields", services.ignored_fields.total())
    phases_s: Counter[str] = Counter()
    for phase in services.supervisor.timeline:
        phases_s[phase.name] += phase.seconds  # type: ignore[assignment]
    for name, seconds in phases_s.items():
        yield MetricSample("semipd:startup_phase_seconds", seconds, (name,))
    ready = services.supervisor.ready
    facts = (ready.version, ready.info["name"], ready.scheduler) if ready else ("", "", "")
    yield MetricSample("semipd:build_info", 1, (__version__, *facts))
    if ready is not None:
        yield MetricSample("vllm:cache_config_info", 1, _cache_facts(services.config.kv, ready.info))
    if engine is not None:
        yield MetricSample("semipd:progress_age_seconds", engine["progress_age_ms"] / 1e3)
        yield from _engine_samples(engine)
        yield from _partition_samples(engine["partition"])


def _slo_samples(services: "Services") -> Iterator[MetricSample]:
    """Of each configured class; a target that it does not have is left out."""
    for name, levels in services.slo.by_class.items():
        yield MetricSample("semipd:slo_requests", levels.num_judged, (name,))
        yield MetricSample("semipd:slo_met", levels.num_met, (name,))
        targets = services.classes.targets(name).to_wire()
        for target in SLO_LABELS:
            if target_ms := targets[target]:
                label = SLO_LABELS[target]
                yield MetricSample("semipd:slo_target_seconds", target_ms / 1e3, (label, name))


def _engine_samples(engine: EngineStatus) -> Iterator[MetricSample]:
    requests, kv, split = engine["requests"], engine["kv"], engine["split"]
    yield MetricSample("vllm:num_requests_running", requests["prefilling"] + requests["decoding"])
    yield MetricSample("vllm:num_requests_waiting", requests["waiting"])
    yield MetricSample("semipd:background_requests", requests["background"])
    yield MetricSample("semipd:oldest_waiting_seconds", (requests["oldest_waiting_ms"] or 0.0) / 1e3)
    yield MetricSample("vllm:kv_cache_usage_perc", kv["used_blocks"] / kv["total_blocks"])
    yield MetricSample("semipd:kv_blocks", kv["used_blocks"], ("used",))
    yield MetricSample("semipd:kv_blocks", kv["free_blocks"], ("free",))
    yield MetricSample("semipd:kv_blocks", kv["cached_blocks"], ("cached",))
    lanes = engine["lanes"]
    for name, lane in lanes.items():
        yield MetricSample("semipd:split_units", split[name], (name,))
        yield MetricSample("semipd:lane_busy_seconds", lane["busy_ms"] / 1e3, (name,))
        yield MetricSample("semipd:lane_steps", lane["steps"], (name,))
        yield MetricSample("semipd:slow_steps", lane["slow_steps"], (name,))
        yield MetricSample("semipd:lane_tokens", lane["prefill_tokens"], (name, "prefill"))
        yield MetricSample("semipd:lane_tokens", lane["decode_tokens"], (name, "decode"))
    yield MetricSample(
        "vllm:iteration_tokens_total", _step_sizes([lane["step_sizes"] for lane in lanes.values()])
    )


def _step_sizes(lanes: Sequence[StepSizes]) -> Histogram:
    """Of all lanes together."""
    counts = [sum(bucket) for bucket in zip(*(lane["counts"] for lane in lanes), strict=True)]
    return Histogram.counted(lanes[0]["bounds"], counts, sum(lane["sum_tokens"] for lane in lanes))


def _cache_facts(kv: KvConfig, info: DeviceFacts) -> tuple[str, ...]:
    """In the order of the labels. Block 0 holds nothing, so it is no block of the pool."""
    fraction = "None" if kv.bytes else f"{kv.fraction:g}" if kv.fraction else "auto"
    kv_bytes = info["memory"].get("kv_pool")
    return (
        str(info["block_size"]),
        info["dtype"],
        "True",
        fraction,
        str(kv_bytes),
        str(info["num_blocks"] - 1),
    )


def _partition_samples(partition: EnginePartition) -> Iterator[MetricSample]:
    """What is not known yet is NaN."""
    for mode in get_args(PartitionMode):
        yield MetricSample("semipd:partition_mode", mode == partition["mode"], (mode,))
    decision, prediction = partition["decision"], partition["prediction"]
    ttft_ms = decision["predicted_ttft_ms"] if decision else None
    tpot_ms = decision["predicted_tpot_ms"] if decision else None
    yield MetricSample("semipd:predicted_seconds", _or_nan(ttft_ms) / 1e3, ("ttft",))
    yield MetricSample("semipd:predicted_seconds", _or_nan(tpot_ms) / 1e3, ("tpot",))
    yield MetricSample("semipd:prediction_error_ratio", _or_nan(prediction["ttft_error"]), ("ttft",))
    yield MetricSample("semipd:prediction_error_ratio", _or_nan(prediction["tpot_error"]), ("tpot",))
    switch = partition["switch_ms"]
    bounds_s = [bound / 1e3 for bound in switch["bounds_ms"]]
    counted = Histogram.counted(bounds_s, switch["counts"], switch["sum_ms"] / 1e3)
    yield MetricSample("semipd:split_switch_seconds", counted)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
