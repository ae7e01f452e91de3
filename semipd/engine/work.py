"""The work at hand, as partition control wants to see it."""

import math
from collections.abc import Iterable
from itertools import islice

from semipd.engine.lane_state import LaneState
from semipd.partition.interface import StepTimes, Streams, WaitingPrompt, Work
from semipd.sched.scheduler import Scheduler
from semipd.sched.sequence import Sequence

MAX_PROMPTS = 32
"""Prompts looked at; decisions come anew every few milliseconds."""


def work_at_hand(scheduler: Scheduler, prefill: LaneState, times: StepTimes, now_ns: int) -> Work:
    """Prompts in the order in which they will be computed."""
    queued = list(islice(scheduler.queue.in_order(), MAX_PROMPTS))
    prompts = []
    for prompt in queued:
        sequence = scheduler.sequences[prompt.seq]
        done_tokens = sequence.num_scheduled if prompt.is_begun else prompt.prior_tokens
        due_ns = None if prompt.in_background or prompt.is_answering else prompt.due_ns
        prompts.append(_prompt(sequence, done_tokens, due_ns, now_ns))
    decoding = scheduler.decoding.values()
    return Work(
        num_decodes=len(decoding),
        context_tokens=sum([s.num_scheduled for s in decoding]),
        num_joining=len(scheduler.prefilling),
        joining_tokens=sum(len(s.tokens) for s in scheduler.prefilling),
        prompts=tuple(prompts),
        seqs=tuple(prompt.seq for prompt in queued),
        busy_prefill_ms=_remaining_ms(prefill, times, now_ns),
        streams=_streams(decoding, now_ns),
    )


def _streams(decoding: Iterable[Sequence], now_ns: int) -> tuple[Streams, ...]:
    """By their targets. Runs over the whole batch at each decision: few calls."""
    slacks: dict[tuple[float | None, float | None], list[float]] = {}
    for sequence in decoding:
        request = sequence.request
        targets = request.targets
        tpot_ms, itl_ms = targets.tpot_ms, targets.itl_ms
        slack_ms = 0.0
        if tpot_ms is not None:
            num_tokens = sequence.num_computed - len(request.prompt) - len(request.emitted)
            slack_ms = tpot_ms * num_tokens - (now_ns - sequence.first_token_ns) / 1e6
        elif itl_ms is None:
            continue
        slacks.setdefault((tpot_ms, itl_ms), []).append(slack_ms)
    return tuple(
        Streams(tpot_ms, itl_ms, tuple(sorted(found))) for (tpot_ms, itl_ms), found in slacks.items()
    )


def _prompt(sequence: Sequence, done_tokens: int, due_ns: int | None, now_ns: int) -> WaitingPrompt:
    """A preempted or resumed request has had its first token: its age says that TTFT is settled."""
    request = sequence.request
    is_started = sequence.first_token_ns or request.emitted
    age_ms = math.inf if is_started else (now_ns - request.arrival_ns) / 1e6
    due_ms = math.inf if due_ns is None else (due_ns - now_ns) / 1e6
    return WaitingPrompt(len(sequence.tokens) - done_tokens, done_tokens, age_ms, due_ms)


def _remaining_ms(prefill: LaneState, times: StepTimes, now_ns: int) -> float:
    """Of the prefill steps in flight, as predicted; 0 when they are overdue."""
    if not prefill.inflight:
        return 0.0
    elapsed_ms = (now_ns - max(prefill.inflight[0].launched_at_ns, prefill.last_settled_ns)) / 1e6
    predicted_ms = sum(
        times.prefill(prefill.units(f.plan.split)).ms(f.new_tokens, f.attended_tokens)
        for f in prefill.inflight
    )
    return max(predicted_ms - elapsed_ms, 0.0)
