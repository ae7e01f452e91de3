"""What a way of running both phases does to the gaps between the tokens of the requests that decode.

A request meets a mean time per token if it is not behind its due time, first token + tokens since x target,
at its end. So what counts is its own *slack*, by how much it is ahead now, against what the way costs it: the
steps until the known queue is computed, and a mean request's life after that. Who is ahead has room for long
steps; who can be in time no more, however fast it goes on, does not count.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from semipd.partition.interface import Streams

ASSUMED_LIFE_TOKENS = 100.0
"""Of a request that decodes, until some have finished."""

TIGHT_FRAC = 0.1
"""The pressure on a group of streams is that on the one with so much of the group behind it: a few that are
close to their target should not decide for all."""

REACHABLE_FRAC = 0.9
"""A stream behind its due time can be in time again if tokens at this share of its target would do, or faster
ones where a step alone is faster."""


class Life(NamedTuple):
    """What streams see under a way: `queue_ms` with steps of `step_ms`, then `tokens` of `mean_ms`.

    `solo_ms`: a step with nothing beside it.
    """

    queue_ms: float
    step_ms: float
    tokens: float
    mean_ms: float
    solo_ms: float


class Gaps(NamedTuple):
    """`num_broken`: streams that could meet their targets and would miss them. `pressure`: the time that
    streams need over the time that they have; above 1 targets are missed."""

    num_broken: int
    pressure: float


def judge_gaps(groups: Sequence[Streams], life: Life) -> Gaps:
    num_broken, pressure = 0, 0.0
    for group in groups:
        found = _mean_gaps(group.tpot_ms, group.slacks_ms, life) if group.tpot_ms else Gaps(0, 0.0)
        if group.itl_ms is not None:
            found = _with_longest(found, life.step_ms / group.itl_ms, len(group.slacks_ms))
        num_broken += found.num_broken
        pressure = max(pressure, found.pressure)
    return Gaps(num_broken, pressure)


def _with_longest(found: Gaps, pressure: float, num_streams: int) -> Gaps:
    """Every step is a gap of every stream, so one that is too long breaks them all."""
    num_broken = num_streams if pressure > 1 else found.num_broken
    return Gaps(num_broken, max(found.pressure, pressure))


def _mean_gaps(tpot_ms: float, slacks_ms: Sequence[float], life: Life) -> Gaps:
    need_ms = life.queue_ms + life.tokens * life.mean_ms
    allowed_ms = tpot_ms * (life.queue_ms / life.step_ms + life.tokens)
    fastest_ms = min(life.solo_ms, REACHABLE_FRAC * tpot_ms)
    num_lost = bisect_left(slacks_ms, life.tokens * (fastest_ms - tpot_ms))
    num_saved = len(slacks_ms) - num_lost
    if not num_saved:
        return Gaps(0, 0.0)
    num_broken = max(bisect_left(slacks_ms, need_ms - allowed_ms) - num_lost, 0)
    tight_ms = slacks_ms[num_lost + int(TIGHT_FRAC * num_saved)]
    return Gaps(num_broken, max((need_ms - tight_ms) / allowed_ms, 0.0))
