"""The prompts that have tokens to compute, waiting ones and begun ones, in the order of sched.order."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from operator import attrgetter

from semipd.core.settings import OrderName
from semipd.sched.order import (
    BACKGROUND_EVERY,
    LAMBDA_INVERSE,
    RETURN_FACTOR,
    Pace,
    Prompt,
    Rank,
    forecast,
    foreground_factor,
    left_out,
    rank_of,
)

PLAN_PAUSE_NS = 5_000_000
PLAN_PAUSE_PER_PROMPT_NS = 20_000
"""Between two plans. A plan takes about half a microsecond per prompt: so planning takes a few percent of the
time at most, however many wait."""

MAX_PLANNED = 256
"""Prompts of the foreground, by due time, that a plan looks at. Those behind are not urgent yet."""

MAX_REFUSED_TURNS = 10
"""So often the background may find no room in the KV pool at its turn; then nobody else is placed until it
does."""

_age_key = attrgetter("age_key")


class PromptQueue:
    """Attributes:
    num_begun, num_waiting: prompts that have their blocks, and that have not.
    plan_due_ns: when the next plan is due.
    has_newcomers: somebody has come since the last one.
    """

    def __init__(self, order: OrderName) -> None:
        self.num_begun = 0
        self.num_waiting = 0
        self.plan_due_ns = 0
        self.has_newcomers = False
        self._order: OrderName = order
        self._ranked: list[tuple[Rank, Prompt]] = []
        """By rank: the foreground, and those of the background that may come back."""
        self._background: list[Prompt] = []
        """By age."""
        self._lookups: deque[Prompt] = deque()
        """Waiting ones, by the time when their prefix was last looked up; and some that have gone."""
        self._num_steps = 0  # since the background's last turn
        self._num_refused_turns = 0

    def __len__(self) -> int:
        return self.num_begun + self.num_waiting

    @property
    def num_background(self) -> int:
        return len(self._background)

    @property
    def is_backgrounds_turn(self) -> bool:
        return self._num_steps >= BACKGROUND_EVERY - 1 and bool(self._background)

    def add(self, prompt: Prompt) -> None:
        prompt.rank = rank_of(prompt, self._order)
        if prompt.rank is None:
            self._to_background(prompt)
        else:
            insort(self._ranked, (prompt.rank, prompt))
        prompt.is_queued = self.has_newcomers = True
        self.num_waiting += 1
        self._lookups.append(prompt)

    def remove(self, prompt: Prompt) -> None:
        self._unrank(prompt)
        if prompt.in_background:
            self._drop_from_background(prompt)
        prompt.is_queued = False
        if prompt.is_begun:
            self.num_begun -= 1
        else:
            self.num_waiting -= 1

    def begin(self, prompt: Prompt, prior_tokens: int, due_ns: int | None) -> None:
        """It has been placed; so many of its tokens need not be computed. It keeps its rank until `renew`."""
        prompt.new_tokens += prompt.prior_tokens - prior_tokens
        prompt.prior_tokens, prompt.due_ns, prompt.is_begun = prior_tokens, due_ns, True
        self.num_waiting -= 1
        self.num_begun += 1

    def renew(self, prompt: Prompt, prior_tokens: int, due_ns: int | None, cost_ns: int) -> None:
        """More or less of it is computed or found than before."""
        prompt.new_tokens += prompt.prior_tokens - prior_tokens
        prompt.prior_tokens = prior_tokens
        prompt.due_ns, prompt.cost_ns = due_ns, cost_ns
        rank = rank_of(prompt, self._order)
        if prompt.rank is None or rank == prompt.rank:
            return
        self._unrank(prompt)
        prompt.rank = rank
        if rank is not None:
            insort(self._ranked, (rank, prompt))

    def lookups(self) -> Iterator[Prompt]:
        """Waiting prompts, that which was looked up the longest ago first, each at most once."""
        for _ in range(len(self._lookups)):
            prompt = self._lookups.popleft()
            if prompt.is_queued and not prompt.is_begun:
                self._lookups.append(prompt)
                yield prompt

    def in_order(self) -> Iterator[Prompt]:
        """As the next step will take them. Valid until something changes."""
        if self.is_backgrounds_turn:
            yield from self._background
            yield from self._foreground()
        else:
            yield from self._foreground()
            yield from self._background

    def took_step(self, *, served_background: bool) -> None:
        """A step with prompts, as `in_order` says, has been put together."""
        if not self._background:
            self._num_steps = self._num_refused_turns = 0
        elif not self.is_backgrounds_turn:
            self._num_steps += 1
        elif served_background:
            self._num_steps = self._num_refused_turns = 0
        elif self._num_refused_turns < MAX_REFUSED_TURNS:
            self._num_refused_turns += 1
            self._num_steps = 0

    def plan_is_due(self, now_ns: int) -> bool:
        return now_ns >= self.plan_due_ns and len(self) > 0

    def plan(self, now_ns: int, pace: Pace, busy_ns: float) -> list[Prompt]:
        """Decide anew who is in the background, after `renew`. `busy_ns`: until the next step with prompts
        may begin. Returns those who have come there, or back."""
        self.plan_due_ns = now_ns + PLAN_PAUSE_NS + PLAN_PAUSE_PER_PROMPT_NS * len(self)
        self.has_newcomers = False
        if self._order != "deadline":
            return []
        moved = self._pass_over(now_ns)
        return moved + self._rearrange(now_ns + busy_ns, pace) if pace.is_known else moved

    def waiting_in_background(self) -> list[Prompt]:
        return [prompt for prompt in self._background if not prompt.is_begun]

    def oldest_arrival_ns(self) -> int | None:
        """Of those that wait."""
        return min((p.arrival_ns for p in self.all() if not p.is_begun), default=None)

    def all(self) -> Iterator[Prompt]:
        yield from self._foreground()
        yield from self._background

    def forecast(self, now_ns: int, pace: Pace, busy_ns: float) -> list[tuple[Prompt, int]]:
        """See sched.order.forecast."""
        return forecast(self._foreground(), self._background, pace, now_ns + busy_ns)

    def _foreground(self) -> Iterator[Prompt]:
        return (prompt for _, prompt in self._ranked if not prompt.in_background)

    def _pass_over(self, now_ns: int) -> list[Prompt]:
        """Those whose due time has passed: for good."""
        first = bisect_left(self._ranked, ((1,),))
        last = bisect_left(self._ranked, ((1, now_ns + 1),))
        late = [prompt for _, prompt in self._ranked[first:last]]
        del self._ranked[first:last]
        for prompt in late:
            prompt.rank = None
        moved = [prompt for prompt in late if not prompt.in_background]
        for prompt in moved:
            self._to_background(prompt)
        return moved

    def _rearrange(self, start_ns: float, pace: Pace) -> list[Prompt]:
        factor = foreground_factor(has_background=bool(self._background))
        jobs: list[tuple[int, float]] = []
        prompts: list[Prompt] = []
        per_token_ns, per_pair_ns = factor * pace.ns_per_token, factor * pace.ns_per_pair
        for (group, due_ns, _), prompt in self._ranked[:MAX_PLANNED]:
            new_tokens = prompt.new_tokens  # Pace.cost_ns, without a call
            pairs = prompt.prior_tokens + (new_tokens + 1) / 2
            cost_ns = new_tokens * (per_token_ns + per_pair_ns * pairs)
            if group:
                jobs.append((due_ns, cost_ns * RETURN_FACTOR if prompt.in_background else cost_ns))
                prompts.append(prompt)
            else:
                start_ns += cost_ns
        out = left_out(jobs, start_ns)
        moved = [prompt for idx, prompt in enumerate(prompts) if prompt.in_background != (idx in out)]
        for prompt in moved:
            if prompt.in_background:
                prompt.in_background = False
                self._drop_from_background(prompt)
            else:
                self._to_background(prompt)
        return moved

    def _unrank(self, prompt: Prompt) -> None:
        if prompt.rank is not None:
            del self._ranked[bisect_left(self._ranked, (prompt.rank,))]
            prompt.rank = None

    def _to_background(self, prompt: Prompt) -> None:
        prompt.in_background = True
        insort(self._background, prompt, key=_age_key)

    def _drop_from_background(self, prompt: Prompt) -> None:
        del self._background[bisect_left(self._background, prompt.age_key, key=_age_key)]

    def check_integrity(self) -> None:
        """AssertionError with the numbers when an order or a bound does not hold."""
        ranks = [rank for rank, _ in self._ranked]
        assert ranks == sorted(set(ranks)), f"the foreground is out of order: {ranks}"
        assert all(prompt.rank == rank for rank, prompt in self._ranked), "a prompt stands at another's rank"
        ages = [prompt.age_key for prompt in self._background]
        assert ages == sorted(set(ages)), f"the background is not by age: {ages}"
        assert all(prompt.in_background for prompt in self._background), "the foreground in the background"
        begun = [prompt.is_begun for prompt in self.all()]
        found = sum(begun), len(begun) - sum(begun)
        assert found == (self.num_begun, self.num_waiting), f"{found} begun and waiting prompts"
        if self._order == "cost":
            self._check_starvation_bound()

    def _check_starvation_bound(self) -> None:
        """A prompt of cost c stands before all that come later than c / LAMBDA after it."""
        latest_ns = 0
        for (group, _, _), prompt in self._ranked:
            bound_ns = prompt.arrival_ns + LAMBDA_INVERSE * prompt.cost_ns
            assert not group or latest_ns <= bound_ns, f"{prompt} stands behind one that came at {latest_ns}"
            latest_ns = max(latest_ns, prompt.arrival_ns if group else 0)
