"""States, requests and events as a daemon sends them, for tests of the dashboard: complete and consistent,
with changes by dotted path. tests/tui/test_state_shape.py holds them against real daemons."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import count
from typing import Any

from semipd_top.sources.contract import Seen

from semipd.core import events
from semipd.core.events import EventRow
from semipd.core.state.daemon import EngineState, KvHolder, StateDocument
from semipd.core.state.device import DeviceState, DeviceStats
from semipd.core.state.engine import LaneDocument
from semipd.core.state.partition import (
    Change,
    DecisionRow,
    PartitionDocument,
    PartitionState,
    PhaseModel,
    SloDocument,
)
from semipd.core.state.requests import RequestRow
from semipd.wire.client_protocol import StateFrame

NOW_S = 1_795_243_200.0
NUM_UNITS = 132

Changes = Mapping[str, Any]

_LANE: LaneDocument = {
    "steps": 1000,
    "slow_steps": 2,
    "steps_in_flight": 1,
    "residents": 3,
    "prefill_tokens": 0,
    "decode_tokens": 0,
    "busy_ms": 40_000.0,
    "last_step_age_ms": 3.0,
    "step_age_ms": 3.0,
}

CHANGE: Change = {
    "at_s": None,
    "mode": "auto",
    "actor": "configuration",
    "reason": "start",
    "requested": {},
    "granted": None,
    "rounding": "",
    "expires_at_s": None,
    "effective_at_s": None,
    "slo": None,
}

DECISION: DecisionRow = {
    "split": [68, 64],
    "reason": "64 SMs keep TPOT at 42.1 of 50 ms",
    "merged_tokens": 0,
    "predicted_ttft_ms": 310.4,
    "predicted_tpot_ms": 42.1,
    "at_s": NOW_S - 2,
    "observed_ttft_ms": None,
    "observed_tpot_ms": 41.0,
}


def _phase(steps: int) -> PhaseModel:
    return {"steps": steps, "confident": True, "error": 0.05, "correction": 1.01}


_PARTITION: PartitionState = {
    "mode": "auto",
    "policy": "predictive",
    "change": CHANGE,
    "shared": {"split": [68, 64], "merged_tokens": 0, "rule": "predictive", "reason": DECISION["reason"]},
    "effective": [68, 64],
    "decision": DECISION,
    "prefill_duty": 0.62,
    "prediction": {
        "ttft_error": 0.08,
        "tpot_error": 0.03,
        "steps": {"prefill": _phase(900), "decode": _phase(950), "merged": _phase(40)},
    },
    "switch_ms": {
        "bounds_ms": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0],
        "counts": [5, 3, 0, 0, 0, 0, 0, 0, 0, 0],
        "sum_ms": 1.2,
        "count": 8,
    },
}

_ENGINE: EngineState = {
    "state": "ready",
    "pid": 4242,
    "phase": None,
    "attempt": None,
    "backoff_left_s": None,
    "why": None,
    "hint": None,
    "restarts": 0,
}

GPU_STATS: DeviceStats = {
    "gpu": {
        "memory_used_bytes": 70 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "power_w": 512.3,
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 2619,
        "temperature_c": 61,
        "throttled_by": [],
    },
    "partition": {"possible": True, "reason": "", "notes": []},
}

_DEVICE: DeviceState = {
    "kind": "cuda",
    "name": "NVIDIA H100 80GB HBM3",
    "unit": "SM",
    "num_units": NUM_UNITS,
    "dtype": "bfloat16",
    "memory": {"weights": 15 * 2**30, "kv": 48 * 2**30, "workspace": 2**28},
    "stats": GPU_STATS,
}

HOLDER: KvHolder = {
    "id": "a" * 32,
    "state": "decoding",
    "blocks": 300,
    "tokens": 4790,
    "priority": "interactive",
}

_STATE: StateDocument = {
    "at_s": NOW_S,
    "uptime_s": 7300.0,
    "state": "ready",
    "engine": _ENGINE,
    "model": {"name": "tiny-llama", "max_model_len": 8192},
    "versions": {"daemon": "0.1.0", "engine": "0.1.0"},
    "device": _DEVICE,
    "scheduler": "semipd",
    "split": {"prefill": 68, "decode": 64, "unit": "SM"},
    "last_split_change": {
        "at_s": NOW_S - 2,
        "from": [0, 132],
        "to": [68, 64],
        "rule": "predictive",
        "reason": DECISION["reason"],
        "switch_ms": 0.2,
    },
    "partition": _PARTITION,
    "lanes": {"prefill": {**_LANE, "prefill_tokens": 90_000}, "decode": {**_LANE, "decode_tokens": 60_000}},
    "kv": {
        "block_tokens": 16,
        "total_blocks": 4000,
        "used_blocks": 1200,
        "free_blocks": 2800,
        "cached_blocks": 900,
        "reserved_blocks": 40,
        "holders": [HOLDER, {**HOLDER, "id": "b" * 32, "blocks": 120, "tokens": 1900}],
    },
    "prefix": {"prompt_tokens": 90_000, "cached_tokens": 30_000},
    "preemptions": 3,
    "requests": {
        "waiting": 4,
        "background": 0,
        "prefilling": 2,
        "decoding": 9,
        "oldest_waiting_ms": 410.0,
        "live": 15,
        "held": 0,
        "suspects": 0,
        "totals": {"admitted": 300, "stop": 200, "length": 70, "cancelled": 11, "error": 4},
    },
    "drain": {
        "state": "serving",
        "awaited": 15,
        "oldest_ms": 9300.0,
        "seconds_left": None,
        "ended": 0,
        "actor": None,
        "reason": None,
    },
    "throughput": {"prompt_tokens_per_s": 5120.0, "output_tokens_per_s": 730.0},
    "slo": {
        "targets": {
            "ttft_ms": 500.0,
            "ttft_ms_per_1k_tokens": 0.0,
            "tpot_ms": 50.0,
            "itl_ms": 0.0,
            "itl_percentile": 99.0,
            "percentile": 90.0,
            "window_s": 60.0,
        },
        "requests": 140,
        "attainment": 0.964,
        "goodput_rps": 2.25,
        "ttft_ms": {"p50": 120.0, "p90": 380.0, "p99": 640.0},
        "tpot_ms": {"p50": 31.0, "p90": 44.0, "p99": 52.0},
        "itl_ms": {"p50": 40.0, "p90": 61.0, "p99": 95.0},
        "classes": {},
    },
    "lamps": {
        "process": {"ok": True},
        "loop": {"ok": True, "event_loop_lag_ms": 0.4, "engine_answer_ms": 1.1},
        "progress": {"ok": True, "age_ms": 3.0},
    },
    "refused": {"overloaded": 2, "context_length_exceeded": 1},
    "notes": [],
}

_NO_NUMBERS = {"p50": None, "p90": None, "p99": None}

_WITHOUT_ENGINE: dict[str, Any] = {
    "state": "starting",
    "engine.state": "starting",
    "model.max_model_len": None,
    "versions.engine": None,
    **dict.fromkeys(
        ("device", "split", "lanes", "prefix", "preemptions", "scheduler", "kv", "last_split_change")
    ),
    "partition": None,
    "requests": {
        **dict.fromkeys(("waiting", "background", "prefilling", "decoding", "oldest_waiting_ms")),
        "live": 0,
        "held": 0,
        "suspects": 0,
        "totals": {},
    },
    "slo.requests": 0,
    "slo.attainment": None,
    "slo.goodput_rps": 0.0,
    "slo.ttft_ms": _NO_NUMBERS,
    "slo.tpot_ms": _NO_NUMBERS,
    "slo.itl_ms": _NO_NUMBERS,
    "drain.awaited": 0,
    "drain.oldest_ms": None,
    "lamps": {
        "process": {"ok": False},
        "loop": {"ok": False, "event_loop_lag_ms": 0.4, "engine_answer_ms": None},
        "progress": {"ok": False, "age_ms": None},
    },
    "throughput": {"prompt_tokens_per_s": 0.0, "output_tokens_per_s": 0.0},
    "refused": {},
}

_REQUEST: RequestRow = {
    "id": "req-0000",
    "seq": 0,
    "key": None,
    "state": "decoding",
    "finish_reason": None,
    "error_code": None,
    "arrived_at_s": NOW_S - 5,
    "age_ms": 5000.0,
    "in_background": False,
    "expected_start_s": None,
    "priority": "interactive",
    "prompt_tokens": 1000,
    "cached_tokens": 256,
    "output_tokens": 100,
    "max_tokens": 400,
    "blocks": 70,
    "preemptions": 0,
    "queue_ms": 12.5,
    "prefill_ms": 230.0,
    "ttft_ms": 244.0,
    "tpot_ms": 42.0,
    "itl_ms": 55.0,
    "service_class": "default",
    "targets": {"ttft_ms": 500.0, "ttft_ms_per_1k_tokens": 0.0, "tpot_ms": 50.0, "itl_ms": 0.0},
    "accept_late": False,
}


def changed(base: Changes, changes: Changes) -> Any:
    """A deep copy; `changes` by dotted path, which must exist except for the last name of a free mapping."""
    copy: dict[str, Any] = deepcopy(dict(base))
    for path, value in changes.items():
        *parents, name = path.split(".")
        owner = copy
        for parent in parents:
            owner = owner[parent]
        assert name in owner, f"there is no {path}"
        owner[name] = deepcopy(value)
    return copy


def state(changes: Changes | None = None) -> Any:
    """Of a busy daemon on a GPU, at NOW_S."""
    return changed(_STATE, changes or {})


def state_without_engine(changes: Changes | None = None) -> Any:
    """Nothing is known that only the engine knows."""
    return changed(changed(_STATE, _WITHOUT_ENGINE), changes or {})


def later(before: Changes, seconds: float, changes: Changes | None = None, steps: int = 10) -> Any:
    """The state of `seconds` after `before`: both lanes have run `steps` more steps of 20 ms each."""
    moved: dict[str, Any] = {"at_s": before["at_s"] + seconds, "uptime_s": before["uptime_s"] + seconds}
    for name in ("prefill", "decode"):
        lane = before["lanes"][name]
        seen = before["partition"]["prediction"]["steps"][name]["steps"]
        moved[f"lanes.{name}.steps"] = lane["steps"] + steps
        moved[f"lanes.{name}.busy_ms"] = lane["busy_ms"] + 20.0 * steps
        moved[f"partition.prediction.steps.{name}.steps"] = seen + steps
    return changed(before, {**moved, **(changes or {})})


def request(seq: int, **changes: Any) -> RequestRow:
    """As a daemon lists it."""
    row: RequestRow = changed(_REQUEST, {"id": f"req-{seq:04}", "seq": seq, **changes})
    return row


def finished(seq: int, **changes: Any) -> RequestRow:
    return request(seq, **({"state": "finished", "finish_reason": "stop", "blocks": 0} | changes))


_numbers = count(1)


def event(kind: str, data: Changes | None = None, at_s: float = NOW_S, request_id: str | None = None) -> Any:
    """With an id of its own."""
    found = {"id": f"1795240000-{next(_numbers)}", "at_s": at_s, "kind": kind, "request_id": request_id}
    return found | {"data": dict(EVENTS[kind] if data is None else data)}


EVENTS: dict[str, dict[str, Any]] = {
    told.kind: dict(told.data)
    for told in (
        events.ARRIVED({"prompt_tokens": 1000, "max_tokens": 400}),
        events.QUEUED({"prompt_tokens": 1000}),
        events.ADMITTED({"cached_tokens": 256, "tokens": 1000}),
        events.TO_BACKGROUND({"reason": "late", "expected_start_ms": 4200.0}),
        events.FROM_BACKGROUND({}),
        events.FIRST_TOKEN({}),
        events.FIRST_BYTE({"ttft_ms": 244.0}),
        events.PREEMPTED({"tokens_lost": 640, "blocks": 40}),
        events.FINISHED({"reason": "stop", "output_tokens": 100, "tpot_ms": 42.0}),
        events.REFUSED({"code": "overloaded"}),
        events.SPLIT_CHANGED(
            {
                "from": [0, 132],
                "to": [68, 64],
                "rule": "predictive",
                "reason": "64 SMs keep TPOT",
                "switch_ms": 0.2,
            }
        ),
        events.PARTITION_CHANGED(
            {
                "mode": "fixed",
                "actor": "ann (pid 4121)",
                "reason": "long prompts",
                "granted": [72, 60],
                "expires_s": 600.0,
            }
        ),
        events.ENGINE_DIED({"why": "The engine was killed by SIGKILL.", "in_flight": 7}),
        events.ENGINE_RESTARTED({"outage_s": 3.2, "device": "NVIDIA H100"}),
        events.REQUEST_RESUMED({"output_tokens": 55}),
        events.SLOW_STEP(
            {
                "lane": "decode",
                "step_id": 4711,
                "busy_ms": 130.0,
                "predicted_ms": 20.0,
                "units": 64,
                "new_tokens": 0,
                "num_decodes": 9,
            }
        ),
        events.DRAIN_CHANGED(
            {
                "state": "draining",
                "actor": "ann (pid 4121)",
                "reason": "new weights",
                "limit_s": 60.0,
                "awaited": 3,
                "ended": 0,
            }
        ),
        events.SLO_CHANGED(
            {
                "actor": "ann (pid 4121)",
                "reason": "evening peak",
                "service_class": "default",
                "ttft_ms": 300.0,
                "ttft_ms_per_1k_tokens": 0.0,
                "tpot_ms": 50.0,
                "itl_ms": 0.0,
                "itl_percentile": 99.0,
                "percentile": 90.0,
                "window_s": 60.0,
            }
        ),
        events.WORKER_DIED(
            {
                "lane": "decode",
                "pid": 77,
                "how": "it was killed",
                "signal": "SIGKILL",
                "step_id": 4711,
            }
        ),
        events.WORKER_RESTARTED({"lane": "decode", "pid": 78, "seconds": 0.8}),
    )
}
"""An example of each kind's data (docs/operations.md)."""


def seen(
    state: StateDocument,
    requests: Sequence[RequestRow] | None = None,
    events: Sequence[EventRow] = (),
    lost: int = 0,
) -> Seen:
    """The item that brings this state."""
    frame = StateFrame(state, list(events), lost)
    return Seen(state["at_s"], frame, requests)


POSSIBLE = [[units, NUM_UNITS - units] for units in range(8, NUM_UNITS, 4)]

SLO: SloDocument = {
    "targets": _STATE["slo"]["targets"],
    "observed": {
        "ttft_ms": 350.0,
        "tpot_ms": 43.0,
        "mean_tpot_ms": 31.0,
        "mean_output_tokens": 210.0,
        "arrivals_per_s": 2.4,
    },
}
_PARTITION_DOCUMENT: PartitionDocument = {
    **_PARTITION,
    "slo": SLO,
    "unit": "SM",
    "num_units": NUM_UNITS,
    "possible": [*POSSIBLE],
    "history": [CHANGE],
    "decisions": [DECISION],
}


def partition_document(changes: Changes | None = None) -> Any:
    """What partition.get answers."""
    return changed(_PARTITION_DOCUMENT, changes or {})
