"""What a split would mean for the requests at hand: the real queue is walked, step by step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from semipd.core.split import Split
from semipd.partition.interface import Line, Prompt, Slo, Snapshot

MAX_STEPS = 32
"""Prefill steps looked ahead. What lies behind them is decided about when it comes closer."""


class PrefillStep(NamedTuple):
    """`ends`: indices of the prompts whose last token this step computes."""

    new_tokens: int
    attended_tokens: float
    ends: tuple[int, ...]


class Outlook(NamedTuple):
    """A split and what it would do.

    Attributes:
        step_ms: a decode step while both lanes are busy.
        tpot_ms: TPOT at the SLO's percentile: `step_ms`, or less when prefill pauses often enough.
        ttft_ms: TTFT of the prompt at the SLO's percentile among those that can still be in time.
        watched: that prompt's index.
        num_late: prompts that could be in time now and would be late.
        loss: requests that would miss a target: `num_late`, and the decode batch if its TPOT is missed.
        excess: how far the targets are missed, in targets, summed over requests: breaks ties.
    """

    split: Split
    step_ms: float
    tpot_ms: float
    ttft_ms: float | None
    watched: int | None
    num_late: int
    loss: int
    excess: float


def prefill_steps(prompts: Sequence[Prompt], chunk_tokens: int) -> list[PrefillStep]:
    """The next steps as the scheduler would cut them: whole budgets, prompts in order."""
    steps: list[PrefillStep] = []
    taken, attended, ends = 0, 0.0, list[int]()
    for idx, (left, prior, _age) in enumerate(prompts):
        while left and len(steps) < MAX_STEPS:
            length = min(left, chunk_tokens - taken)
            attended += length * (prior + (length + 1) / 2)
            taken, left, prior = taken + length, left - length, prior + length
            if not left:
                ends.append(idx)
            if taken == chunk_tokens:
                steps.append(PrefillStep(taken, attended, tuple(ends)))
                taken, attended, ends = 0, 0.0, []
    if taken and len(steps) < MAX_STEPS:
        steps.append(PrefillStep(taken, attended, tuple(ends)))
    return steps


def walk(
    steps: Sequence[PrefillStep], prompts: Sequence[Prompt], line: Line, start_ms: float
) -> list[tuple[float, int]]:
    """(TTFT, index) of every prompt that ends within the steps, in order; they start in `start_ms`."""
    ttfts: list[tuple[float, int]] = []
    now_ms = start_ms
    constant, per_token, per_context = line
    for new, attended, ends in steps:
        now_ms += constant + per_token * new + per_context * attended
        for idx in ends:
            ttfts.append((prompts[idx].age_ms + now_ms, idx))
    return ttfts


def outlook(snapshot: Snapshot, slo: Slo, split: Split, steps: Sequence[PrefillStep]) -> Outlook:
    step_ms = decode_step_ms(snapshot, split)
    tpot_ms = min(step_ms, _paused_tpot_ms(snapshot, split, step_ms))
    line = snapshot.times.prefill(split.prefill_units)
    return judge(snapshot, slo, split, steps, line, step_ms, tpot_ms)


def judge(
    snapshot: Snapshot,
    slo: Slo,
    split: Split,
    steps: Sequence[PrefillStep],
    line: Line,
    step_ms: float,
    tpot_ms: float,
) -> Outlook:
    """Count who would miss a target when steps take what `line` says."""
    hopeful = [
        ttft
        for ttft in walk(steps, snapshot.prompts, line, snapshot.busy_prefill_ms)
        if snapshot.prompts[ttft[1]].age_ms < slo.ttft_ms
    ]
    num_late = sum(ttft_ms > slo.ttft_ms for ttft_ms, _ in hopeful)
    excess = sum(max(ttft_ms / slo.ttft_ms - 1, 0.0) for ttft_ms, _ in hopeful)
    loss = num_late
    if tpot_ms > slo.tpot_ms:
        loss += snapshot.num_decodes
        excess += snapshot.num_decodes * (tpot_ms / slo.tpot_ms - 1)
    ttft_ms, watched = _at_percentile(hopeful, slo.percentile)
    return Outlook(split, step_ms, tpot_ms, ttft_ms, watched, num_late, loss, excess)


def decode_step_ms(snapshot: Snapshot, split: Split) -> float:
    """With the sequences that join the batch when their prompt is computed."""
    line = snapshot.times.decode(split.decode_units)
    return line.ms(
        snapshot.num_decodes + snapshot.num_joining, snapshot.context_tokens + snapshot.joining_tokens
    )


def _paused_tpot_ms(snapshot: Snapshot, split: Split, step_ms: float) -> float:
    """TPOT at the percentile when prefill works only part of the time and lends its units otherwise.

    A request sees a mixture of shared and solo steps; the spread between requests is taken from the window.
    """
    s = snapshot
    if s.observed.tpot_ms is None or not s.observed.mean_tpot_ms:
        return step_ms
    faster = s.times.prefill(split.prefill_units).ms(s.chunk_tokens, 0) / s.times.prefill(
        s.current.prefill_units
    ).ms(s.chunk_tokens, 0)
    duty = min(1.0, s.prefill_duty * faster)
    solo_ms = decode_step_ms(s, s.table.solo_decode)
    mean_ms = 1 / (duty / step_ms + (1 - duty) / solo_ms)
    return mean_ms * max(1.0, s.observed.tpot_ms / s.observed.mean_tpot_ms)


def _at_percentile(ttfts: list[tuple[float, int]], percent: float) -> tuple[float | None, int | None]:
    if not ttfts:
        return None, None
    ordered = sorted(ttfts)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]
