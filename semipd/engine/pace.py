"""How fast prompts are computed at present, whatever the scheduler: what the order of prompts rests on."""

from typing import NamedTuple

from semipd.core.settings import EngineSettings, SchedulerName
from semipd.engine.lane_state import LaneState
from semipd.partition.control import Control
from semipd.partition.interface import Line
from semipd.partition.step_times.models import Models
from semipd.sched.order import ASSUMED_PACE, Pace


class _Steps(NamedTuple):
    """Steps with a prompt, as they run now: their time, how many prompt tokens they take, and whether that
    time has been fitted."""

    line: Line
    chunk_tokens: int
    is_known: bool


def prompt_pace(
    scheduler: SchedulerName, settings: EngineSettings, control: Control, batch: tuple[int, int]
) -> Pace:
    """Beside a decode `batch` (sequences, context tokens) under the split or the merged steps that hold while
    both lanes have work; without one on the whole device. Before step times are fitted: from the tokens of
    the steps seen so far."""
    steps = _steps(scheduler, settings, control, batch)
    if not steps.is_known:
        unfitted = control.models.unfitted_prompt
        return ASSUMED_PACE if unfitted is None else ASSUMED_PACE._replace(ns_per_token=unfitted[1] * 1e6)
    line, chunk_tokens = steps.line, max(steps.chunk_tokens, 1)
    per_token_ms = line.per_token_ms + line.constant_ms / chunk_tokens
    return Pace(per_token_ms * 1e6, line.per_context_ms * 1e6, line.ms(chunk_tokens, 0.0) * 1e6)


def _steps(
    scheduler: SchedulerName, settings: EngineSettings, control: Control, batch: tuple[int, int]
) -> _Steps:
    models, shared = control.models, control.shared
    if scheduler == "prefill-first":
        return _merged(models, settings.step_token_budget, (0, 0))
    if scheduler == "chunked":
        return _merged(models, settings.step_token_budget, batch)
    if shared.merged_tokens and (batch[0] or control.mode == "off"):
        return _merged(models, shared.merged_tokens, batch)
    units = shared.split.prefill_units if batch[0] else models.num_units
    return _Steps(models.prefill(units), settings.prefill_chunk_tokens, models.confident)


def _merged(models: Models, budget_tokens: int, batch: tuple[int, int]) -> _Steps:
    return _Steps(models.merged(*batch), budget_tokens - batch[0], models.knows_merged)


def busy_ns(lanes: tuple[LaneState, LaneState], pace: Pace, now_ns: int) -> float:
    """Until the steps with prompts that are in flight will be done, as predicted."""
    latest_ns = 0.0
    for lane in lanes:
        work_ns = sum(
            pace.ns_per_token * flight.new_tokens + pace.ns_per_pair * flight.attended_tokens
            for flight in lane.inflight
            if flight.chunks
        )
        if work_ns:
            began_ns = max(lane.inflight[0].launched_at_ns, lane.last_settled_ns)
            latest_ns = max(latest_ns, began_ns + work_ns - now_ns)
    return latest_ns
