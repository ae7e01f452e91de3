"""In which order prompts are computed. Pure: no clock, no device, no memory.

A prompt stands in the foreground or in the background.

* Foreground: one whose first token is due at some time. It is computed by its *rank*:
  - `fcfs`: by arrival;
  - `cost`: least predicted cost minus LAMBDA x wait. As everybody's wait grows alike, that is the order of
    arrival + cost / LAMBDA, which does not change with time: no look at the whole queue is needed;
  - `deadline`: by due time. When one would be late, the longest of those due until then goes to the
    background, which keeps the most prompts in time (`left_out`). It comes back when there is room again.
* Background: no due time, or one that cannot be met: oldest first, where a prompt without a due time counts
  as if it had come NO_TARGET_DELAY_NS later: nobody waits for it as somebody may do for one that is late.

One step in BACKGROUND_EVERY begins with the background; all others with the foreground. Prompts that were
answering already (preempted, or resumed after a crash) come first: a client reads their tokens.

Bounds on waiting, as long as the KV pool has room:

* `cost`: a prompt of cost c is begun before any that arrives later than c / LAMBDA after it.
* background: a prompt that needs, together with all that count as older, n steps has its first token after at
  most BACKGROUND_EVERY x n steps with a prompt in them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from itertools import chain
from typing import NamedTuple

from semipd.core.request import SeqId
from semipd.core.settings import OrderName

LAMBDA_INVERSE = 10
"""1 / LAMBDA: so much earlier must a prompt have come, in units of what it costs more, to go first. In
simulated overload (Mooncake, 75 requests/s, one H200) LAMBDA = 0.1 had less p99 and more requests in time
than first come first served; without ageing the longest waits grew fivefold."""

BACKGROUND_EVERY = 10
"""Steps. In simulation a share of 10 % brought the longest wait from 11 to 8 s below saturation."""

NO_TARGET_DELAY_NS = 60_000_000_000

RETURN_FACTOR = 1.1
"""A prompt in the background needs room for so many times its cost to come back: predictions are off by a
few percent, and it should not go to and fro."""

Rank = tuple[int, int, int]


class Pace(NamedTuple):
    """How fast prompts are computed at present. `is_known`: the step times behind it have been fitted."""

    ns_per_token: float
    ns_per_pair: float
    """(query, key) pairs of attention: see partition.interface.StepRecord."""

    step_ns: float
    is_known: bool = True

    def cost_ns(self, new_tokens: int, prior_tokens: int) -> int:
        pairs = new_tokens * (prior_tokens + (new_tokens + 1) / 2)
        return int(self.ns_per_token * new_tokens + self.ns_per_pair * pairs)


ASSUMED_PACE = Pace(100_000.0, 0.0, 0.0, is_known=False)
"""Until a step with a prompt has been seen: costs grow with tokens, and nobody is late by them."""


@dataclass(slots=True, eq=False)
class Prompt:
    """What the order knows of a prompt that has tokens to compute.

    Attributes:
        due_ns: when its first token should be there; None: whenever.
        new_tokens, prior_tokens: to compute, and before those: computed, or found as a prefix when that was
            last looked up.
        cost_ns: predicted when that was last renewed.
        is_answering: it has given tokens before.
        stays_behind: it had begun to answer from the background: it does not come to the foreground.
        latest_ns: a first token after that is refused rather than awaited (`shed_late`); None: it waits.
        is_begun: it has its blocks.
        is_queued: it stands in a queue.
        in_background: see the module. Stays as it was when it left the queue.
        expected_start_ns: when it will be begun, as the last forecast says; 0: there was none.
        rank: of the foreground; None: it cannot come there (any more).
    """

    seq: SeqId
    arrival_ns: int
    due_ns: int | None
    new_tokens: int
    prior_tokens: int = 0
    cost_ns: int = 0
    is_answering: bool = False
    stays_behind: bool = False
    latest_ns: int | None = None
    is_begun: bool = field(default=False, init=False)
    expected_start_ns: int = field(default=0, init=False)
    is_queued: bool = field(default=False, init=False)
    in_background: bool = field(default=False, init=False)
    rank: Rank | None = field(default=None, init=False)

    @property
    def age_key(self) -> tuple[int, SeqId]:
        """Sorts the background; unique."""
        has_time = self.due_ns is None and not self.is_answering
        return self.arrival_ns + (NO_TARGET_DELAY_NS if has_time else 0), self.seq


def rank_of(prompt: Prompt, order: OrderName) -> Rank | None:
    """Sorts the foreground; unique. None: it belongs to the background."""
    if prompt.due_ns is None or prompt.stays_behind:
        return None
    if prompt.is_answering:
        return 0, prompt.arrival_ns, prompt.seq
    match order:
        case "fcfs":
            return 1, prompt.arrival_ns, prompt.seq
        case "cost":
            return 1, prompt.arrival_ns + LAMBDA_INVERSE * prompt.cost_ns, prompt.seq
        case "deadline":
            return 1, prompt.due_ns, prompt.seq


def left_out(jobs: Iterable[tuple[int, float]], start_ns: float) -> set[int]:
    """Which of the jobs (due time, cost), by rising due time, to leave out so that the most are in time when
    they are done one after the other from `start_ns` on. Of equally long ones the last is left out.

    The algorithm of Moore and Hodgson (Management Science 15, 1968), optimal: whenever one would be late, the
    longest of those kept so far goes.
    """
    kept: list[tuple[float, int]] = []
    out: set[int] = set()
    end_ns = start_ns
    for idx, (due_ns, cost_ns) in enumerate(jobs):
        end_ns += cost_ns
        if end_ns <= due_ns:
            heappush(kept, (-cost_ns, -idx))
        else:
            minus_longest_ns, minus_idx = heappushpop(kept, (-cost_ns, -idx))
            end_ns += minus_longest_ns
            out.add(-minus_idx)
    return out


def foreground_factor(*, has_background: bool) -> float:
    """By how much the background's steps stretch the time of the foreground."""
    return BACKGROUND_EVERY / (BACKGROUND_EVERY - 1) if has_background else 1.0


def forecast(
    foreground: Iterable[Prompt], background: Sequence[Prompt], pace: Pace, start_ns: float
) -> list[tuple[Prompt, int]]:
    """Note when each prompt will be begun if nobody else comes, and find who would have the first token after
    `latest_ns`, so that the others wait less. Each of those comes with the time when all that was there
    before it will be done: who comes again then waits for none of it.

    The background has its share of the steps while the foreground lasts, and all of them from then on. While
    step times are not known, only what is too late already counts."""
    per_token_ns, per_pair_ns = (pace.ns_per_token, pace.ns_per_pair) if pace.is_known else (0.0, 0.0)
    stretch = foreground_factor(has_background=bool(background))
    shed: list[tuple[Prompt, int]] = []
    front_ns = back_ns = shed_ns = 0.0
    for prompt in chain(foreground, background):
        new_tokens = prompt.new_tokens  # Pace.cost_ns, without a call: this runs for everybody who waits
        cost_ns = new_tokens * (per_token_ns + per_pair_ns * (prompt.prior_tokens + (new_tokens + 1) / 2))
        if prompt.in_background:
            done_ns = back_ns + cost_ns
            end_ns = start_ns + min(done_ns * BACKGROUND_EVERY, front_ns + done_ns)
        else:
            end_ns = start_ns + stretch * (front_ns + cost_ns)
        if prompt.latest_ns is not None and end_ns > prompt.latest_ns and not prompt.is_begun:
            shed_ns += cost_ns
            shed.append((prompt, int(start_ns + front_ns + back_ns + shed_ns)))
            continue
        prompt.expected_start_ns = int(end_ns - cost_ns)
        if prompt.in_background:
            back_ns += cost_ns
        else:
            front_ns += cost_ns
    return shed
