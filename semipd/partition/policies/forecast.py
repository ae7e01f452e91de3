"""What a split would mean for the requests at hand: the real queue is walked, step by step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from semipd.core.percentile import percentile
from semipd.core.slo import Slo
from semipd.core.split import Split
from semipd.partition.interface import Line, Snapshot, WaitingPrompt
from semipd.partition.policies.gaps import ASSUMED_LIFE_TOKENS, Life, judge_gaps

EXACT_STEPS = 32
"""Prefill steps cut exactly; the prompts behind them are taken whole. Decisions come anew long before."""


NEWCOMER_WEIGHT = 0.5
"""Of the pressure on a prompt that comes behind the queue: it may come later, when less is left. Simulated,
0.5, 1 and 2 made no difference beyond noise; with 0 the queue grew while nobody in it could be in time."""


NEWCOMER_STEPS = 2
"""Of the longest step: a prompt that comes just after it began waits for it, and then for its own."""


class PrefillSteps(NamedTuple):
    """`num_steps` steps in a row, together. `ends`: indices of the prompts whose last token they compute."""

    num_steps: int
    new_tokens: int
    attended_tokens: float
    ends: tuple[int, ...]


class Outlook(NamedTuple):
    """A way to run both phases, and what it would do.

    Attributes:
        merged_tokens: merged steps of at most so many tokens on the whole device; 0: apart, under `split`.
        step_ms: a decode step while both lanes are busy.
        tpot_ms: mean time per token of a request's whole life: `step_ms`, or less when prefill pauses often
            enough.
        ttft_ms: TTFT of the prompt at the SLO's percentile among those that can still be in time.
        watched: that prompt's index.
        drain_ms: until the known queue is computed.
        num_late: prompts that could be in time now and would be late.
        num_broken: see Gaps.
        prompt_pressure: the largest part of its TTFT target that a prompt needs, of those in the queue that
            will be in time and of two that may come now: behind the queue, or before it but behind a step.
        gap_pressure: see Gaps.
    """

    split: Split
    merged_tokens: int
    step_ms: float
    tpot_ms: float
    ttft_ms: float | None
    watched: int | None
    drain_ms: float
    num_late: int
    num_broken: int
    prompt_pressure: float
    gap_pressure: float

    @property
    def loss(self) -> int:
        """Requests that would miss a target."""
        return self.num_late + self.num_broken

    @property
    def pressure(self) -> float:
        """How near the target is that is nearest to being missed."""
        return max(self.prompt_pressure, self.gap_pressure)

    @property
    def name(self) -> str:
        return f"merged steps of {self.merged_tokens} tokens" if self.merged_tokens else str(self.split)


def prefill_steps(prompts: Sequence[WaitingPrompt], chunk_tokens: int) -> list[PrefillSteps]:
    """The next steps as the scheduler would cut them: whole budgets, prompts in order."""
    steps: list[PrefillSteps] = []
    taken, attended, ends = 0, 0.0, list[int]()
    for idx, (left, prior, _age, _due) in enumerate(prompts):
        while left:
            if len(steps) >= EXACT_STEPS and not taken:
                steps.append(PrefillSteps(-(-left // chunk_tokens), left, _attended(left, prior), (idx,)))
                break
            length = min(left, chunk_tokens - taken)
            attended += _attended(length, prior)
            taken, left, prior = taken + length, left - length, prior + length
            if not left:
                ends.append(idx)
            if taken == chunk_tokens:
                steps.append(PrefillSteps(1, taken, attended, tuple(ends)))
                taken, attended, ends = 0, 0.0, []
    if taken:
        steps.append(PrefillSteps(1, taken, attended, tuple(ends)))
    return steps


def _attended(length: int, prior: int) -> float:
    """See StepRecord."""
    return length * (prior + (length + 1) / 2)


def drain_ms(steps: Sequence[PrefillSteps], line: Line, start_ms: float) -> float:
    """Until the whole queue is computed."""
    constant, per_token, per_context = line
    return start_ms + sum(
        cut.num_steps * constant + per_token * cut.new_tokens + per_context * cut.attended_tokens
        for cut in steps
    )


def walk(
    steps: Sequence[PrefillSteps], prompts: Sequence[WaitingPrompt], line: Line, start_ms: float
) -> list[tuple[float, int]]:
    """(time until the first token, index) of every prompt, in order; the first step starts in `start_ms`."""
    first_tokens: list[tuple[float, int]] = []
    now_ms = start_ms
    constant, per_token, per_context = line
    for num_steps, new, attended, ends in steps:
        now_ms += num_steps * constant + per_token * new + per_context * attended
        for idx in ends:
            first_tokens.append((now_ms, idx))
    return first_tokens


def split_outlook(s: Snapshot, slo: Slo, split: Split, steps: Sequence[PrefillSteps]) -> Outlook:
    """`steps`: the queue cut into `s.chunk_tokens`."""
    line = s.times.prefill(split.prefill_units)
    return _judge(s, slo, split, 0, steps, line, decode_step_ms(s, split))


def merged_outlook(s: Snapshot, slo: Slo, merged_tokens: int) -> Outlook:
    line = s.times.merged(s.num_decodes, s.context_tokens)
    steps = prefill_steps(s.prompts, _merged_chunk(s, merged_tokens))
    return _judge(s, slo, s.current, merged_tokens, steps, line, _longest_ms(steps, line))


def _judge(
    s: Snapshot,
    slo: Slo,
    split: Split,
    merged_tokens: int,
    steps: Sequence[PrefillSteps],
    line: Line,
    step_ms: float,
) -> Outlook:
    """Count who would miss a target when prefill steps take what `line` says."""
    ttfts, num_late, prompt_pressure = _prompts_outlook(s, slo, steps, line)
    queue_ms = max(drain_ms(steps, line, s.busy_prefill_ms), step_ms)
    solo_ms = decode_step_ms(s, s.table.solo_decode)
    tpot_ms = min(step_ms, _paused_tpot_ms(s, line, merged_tokens, step_ms, solo_ms, queue_ms))
    life_tokens = s.observed.mean_output_tokens or ASSUMED_LIFE_TOKENS
    gaps = judge_gaps(s.streams, Life(queue_ms, step_ms, life_tokens, tpot_ms, solo_ms))
    ttft_ms, watched = percentile(sorted(ttfts), slo.percentile) or (None, None)
    return Outlook(
        split, merged_tokens, step_ms, tpot_ms, ttft_ms, watched, queue_ms,
        num_late, gaps.num_broken, prompt_pressure, gaps.pressure,
    )  # fmt: skip


def _prompts_outlook(
    s: Snapshot, slo: Slo, steps: Sequence[PrefillSteps], line: Line
) -> tuple[list[tuple[float, int]], int, float]:
    """(TTFT, index) of those that can be in time, how many of them will not, and the pressure. Those behind
    which a newcomer stands are the ones with a due time, in time or not."""
    ttfts: list[tuple[float, int]] = []
    num_late, pressure, last_ms = 0, 0.0, 0.0
    for now_ms, idx in walk(steps, s.prompts, line, s.busy_prefill_ms):
        age_ms, due_ms = s.prompts[idx][2:]
        if due_ms == math.inf:
            continue
        last_ms = now_ms
        if due_ms > 0:
            ttfts.append((age_ms + now_ms, idx))
            if now_ms > due_ms:
                num_late += 1
            else:
                pressure = max(pressure, (age_ms + now_ms) / (age_ms + due_ms))
    newcomer_ms = max(NEWCOMER_WEIGHT * last_ms, NEWCOMER_STEPS * _longest_ms(steps, line))
    return ttfts, num_late, max(pressure, newcomer_ms / slo.ttft_ms)


def _longest_ms(steps: Sequence[PrefillSteps], line: Line) -> float:
    """A step with no prompts takes what the line says of none."""
    return max(
        [line.ms(cut.new_tokens / cut.num_steps, cut.attended_tokens / cut.num_steps) for cut in steps],
        default=line.constant_ms,
    )


def decode_step_ms(snapshot: Snapshot, split: Split) -> float:
    """With the sequences that join the batch when their prompt is computed."""
    line = snapshot.times.decode(split.decode_units)
    return line.ms(
        snapshot.num_decodes + snapshot.num_joining, snapshot.context_tokens + snapshot.joining_tokens
    )


def _paused_tpot_ms(
    s: Snapshot, line: Line, merged_tokens: int, step_ms: float, solo_ms: float, queue_ms: float
) -> float:
    """TPOT when prefill works only part of the time and lends its units otherwise.

    A request sees a mixture of shared and solo steps. How much of its life is shared: as seen at the
    percentile in the window, more if prompts will take longer than now, and at least the part of an average
    request's life that the prompts at hand fill.
    """
    observed = s.observed
    if observed.tpot_ms is None or observed.mean_output_tokens is None or step_ms <= solo_ms:
        return step_ms
    if s.merged_tokens:
        now_line = s.times.merged(s.num_decodes, s.context_tokens)
        now_step_ms = now_line.ms(_merged_chunk(s, s.merged_tokens), 0)
    else:
        now_line = s.times.prefill(s.current.prefill_units)
        now_step_ms = decode_step_ms(s, s.current)
    seen = _shared_part(observed.tpot_ms, now_step_ms, solo_ms)
    slower = _ms_per_token(s, line, merged_tokens) / _ms_per_token(s, now_line, s.merged_tokens)
    filled = queue_ms / (observed.mean_output_tokens * step_ms)
    shared = min(max(max(seen, s.prefill_duty) * slower, filled), 1.0)
    return 1 / (shared / step_ms + (1 - shared) / solo_ms)


def _shared_part(tpot_ms: float, step_ms: float, solo_ms: float) -> float:
    """Part of its time that a request spent in shared steps of `step_ms` to have this TPOT."""
    if step_ms <= solo_ms:
        return 0.0
    return (1 / solo_ms - 1 / tpot_ms) / (1 / solo_ms - 1 / step_ms)


def _ms_per_token(s: Snapshot, line: Line, merged_tokens: int) -> float:
    chunk = _merged_chunk(s, merged_tokens) if merged_tokens else s.chunk_tokens
    return line.ms(chunk, 0) / chunk


def _merged_chunk(s: Snapshot, merged_tokens: int) -> int:
    """What decode leaves of a merged step's budget."""
    return max(merged_tokens - s.num_decodes, 1)
