"""One record per life-cycle edge of a request; the same record feeds log, status and dashboard."""

from dataclasses import dataclass, field
from typing import Literal

from semipd.core.request import SeqId

EventKind = Literal[
    "queued",
    "admitted",
    "first_token",
    "preempted",
    "finished",
    "refused",
    "split_changed",
    "partition_changed",
    "slo_changed",
    "slow_step",
    "worker_died",
    "worker_restarted",
]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """`data` by kind: admitted {cached_tokens, prompt_tokens}; preempted {tokens_lost, blocks_freed};
    finished {reason, output_tokens}; refused {code, message}; split_changed {from, to, rule, reason,
    switch_ms}: a step was launched under another split, so long after that was wanted; partition_changed
    {mode, actor, reason, granted (empty: no fixed split), expires_s (0: never)}; slo_changed {actor, reason,
    ttft_ms, tpot_ms, percentile, window_s}; slow_step {lane, step_id, busy_ms, predicted_ms, units,
    new_tokens, num_decodes}; worker_died {lane, pid, how, signal (empty: none), step_id (0: it was idle)};
    worker_restarted {lane, pid, seconds (since the death was noticed)}."""

    at_ns: int
    kind: EventKind
    seq: SeqId | None = None
    request_id: str = ""
    data: dict[str, int | float | str | list[int]] = field(default_factory=dict)
