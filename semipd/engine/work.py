"""The work at hand, as partition control wants to see it."""

import math
from itertools import islice

from semipd.engine.lane_state import LaneState
from semipd.partition.interface import StepTimes, WaitingPrompt, Work
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
        prompts.append(_prompt(sequence, done_tokens, now_ns))
    decoding = scheduler.decoding.values()
    return Work(
        num_decodes=len(decoding),
        context_tokens=sum([s.num_scheduled for s in decoding]),
        num_joining=len(scheduler.prefilling),
        joining_tokens=sum(len(s.tokens) for s in scheduler.prefilling),
        prompts=tuple(prompts),
        seqs=tuple(prompt.seq for prompt in queued),
        busy_prefill_ms=_remaining_ms(prefill, times, now_ns),
    )


def _prompt(sequence: Sequence, done_tokens: int, now_ns: int) -> WaitingPrompt:
    """A preempted or resumed request has had its first token, and one that has gone to the background cannot
    be in time: its age says that TTFT is settled."""
    request = sequence.request
    is_late = sequence.in_background and request.targets.ttft_ms is not None
    is_settled = sequence.first_token_ns or request.emitted or is_late
    age_ms = math.inf if is_settled else (now_ns - request.arrival_ns) / 1e6
    return WaitingPrompt(len(sequence.tokens) - done_tokens, done_tokens, age_ms)


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
