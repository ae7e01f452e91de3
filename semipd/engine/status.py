"""The engine's numbers of this moment, as plain data for status, metrics and the dashboard."""

from typing import TYPE_CHECKING

from semipd.core.state.engine import EngineStatus, KvPool, LaneNumbers
from semipd.engine.lane_state import LaneState
from semipd.sched.scheduler import Scheduler

if TYPE_CHECKING:
    from semipd.engine.coordinator import Coordinator


def engine_status(coordinator: "Coordinator", now_ns: int) -> EngineStatus:
    c, info, scheduler = coordinator, coordinator.device.info, coordinator.scheduler
    lanes = {state.lane.name: _lane(state, now_ns) for state in (c.prefill, c.decode)}
    oldest = scheduler.queue.oldest_arrival_ns()
    return {
        "scheduler": c.policy,
        "split": {"prefill": c.split.prefill_units, "decode": c.split.decode_units, "unit": info.unit},
        "requests": {
            "waiting": scheduler.queue.num_waiting,
            "background": scheduler.queue.num_background,
            "prefilling": len(scheduler.prefilling),
            "decoding": len(scheduler.decoding),
            "oldest_waiting_ms": None if oldest is None else (now_ns - oldest) / 1e6,
        },
        "kv": _kv(scheduler),
        "prefix": {
            "prompt_tokens": scheduler.num_prompt_tokens,
            "cached_tokens": scheduler.num_cached_tokens,
        },
        "partition": c.control.status(now_ns),
        "preemptions": scheduler.num_preemptions,
        "lanes": lanes,
        "progress_age_ms": max(lane["step_age_ms"] or 0.0 for lane in lanes.values()),
        "device": c.device.stats(),
    }


def _kv(scheduler: Scheduler) -> KvPool:
    pool = scheduler.memory.pool
    return {
        "block_tokens": scheduler.memory.block_size,
        "total_blocks": pool.num_usable,
        "used_blocks": pool.num_usable - pool.num_free,
        "free_blocks": pool.num_free,
        "cached_blocks": scheduler.memory.num_cached_free,
        "reserved_blocks": scheduler.reserved_blocks,
    }


def _lane(state: LaneState, now_ns: int) -> LaneNumbers:
    age = (now_ns - state.last_settled_ns) / 1e6 if state.num_steps else None
    return {
        "steps": state.num_steps,
        "slow_steps": state.num_slow_steps,
        "steps_in_flight": len(state.inflight),
        "residents": len(state.residents),
        "prefill_tokens": state.num_prefill_tokens,
        "decode_tokens": state.num_decode_tokens,
        "step_sizes": state.step_sizes.to_wire(),
        "busy_ms": state.busy_ns / 1e6,
        "last_step_age_ms": age,
        "step_age_ms": _step_age_ms(state, now_ns),
    }


def _step_age_ms(state: LaneState, now_ns: int) -> float | None:
    """A step behind another one begins when that has settled."""
    if not state.inflight:
        return None
    return (now_ns - max(state.inflight[0].launched_at_ns, state.last_settled_ns)) / 1e6
