"""The queue of prompts as the scheduler uses it: what it is told of sequences, and when that is renewed.

A prompt's cost is predicted from the tokens that are not cached. Its cached prefix is looked up when it
comes, when it is placed, and in between by every plan for some of those that wait, in turn: a look-up walks
the prefix index.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from semipd.core.request import SeqId
from semipd.core.settings import OrderName
from semipd.core.slo import Targets
from semipd.sched.flight import Chunk
from semipd.sched.order import ASSUMED_PACE, Pace, Prompt
from semipd.sched.queue import PromptQueue
from semipd.sched.sequence import Sequence, retarget

LOOKUPS_PER_PLAN = 8
LOOKUP_TOKENS_PER_PLAN = 2048
"""A plan looks up so many prompts, or fewer when they have so many cached tokens together."""

MAX_BEGUN_FRAC = 0.5
"""Of the pool, that prompts which are begun and not yet computed may hold before one more is placed. Each
that is overtaken between two chunks keeps its blocks; answers under way need some too."""


class Prompts:
    """Attributes:
    queue: those that wait, and those that are begun and have tokens to launch.
    """

    def __init__(self, order: OrderName, max_late_ns: int, cached_tokens: Callable[[Sequence], int]) -> None:
        """`max_late_ns`: see sched.planning."""
        self.queue = PromptQueue(order)
        self._max_late_ns = max_late_ns
        self._cached_tokens = cached_tokens
        self._pace = ASSUMED_PACE

    def add(self, sequence: Sequence) -> None:
        """It waits."""
        is_answering = bool(sequence.first_token_ns or sequence.request.emitted)
        prior_tokens = self._cached_tokens(sequence)
        new_tokens = len(sequence.tokens) - prior_tokens
        sequence.queued = Prompt(
            sequence.seq,
            sequence.request.arrival_ns,
            sequence.due_ns(new_tokens),
            new_tokens,
            prior_tokens,
            self._pace.cost_ns(new_tokens, prior_tokens),
            is_answering,
            stays_behind=is_answering and sequence.in_background,
        )
        self._note_latest(sequence, sequence.queued)
        self.queue.add(sequence.queued)

    def remove(self, sequence: Sequence) -> None:
        """No effect when it has no tokens to launch."""
        if sequence.is_queued:
            self.queue.remove(_prompt_of(sequence))

    def may_begin(self, sequence: Sequence, running: Iterable[Sequence], pool_tokens: int) -> bool:
        """See MAX_BEGUN_FRAC. `running`: those that are prefilling."""
        if not self.queue.num_begun:
            return True
        begun_tokens = sum(len(s.tokens) for s in running if s.tokens_left)
        return begun_tokens + len(sequence.tokens) <= pool_tokens * MAX_BEGUN_FRAC

    def begin(self, sequence: Sequence) -> None:
        """It has been placed."""
        cached = sequence.num_scheduled
        self.queue.begin(_prompt_of(sequence), cached, sequence.due_ns(len(sequence.tokens) - cached))

    def took_step(self, chunks: Iterable[Chunk]) -> None:
        """A step with these chunks has been put together."""
        served_background = False
        for sequence, segment in chunks:
            served_background |= sequence.in_background
            if segment.sample:
                self.queue.remove(_prompt_of(sequence))
        self.queue.took_step(served_background=served_background)

    def plan(
        self,
        sequences: Mapping[SeqId, Sequence],
        begun: Iterable[Sequence],
        pace: Pace,
        busy_ns: float,
        now_ns: int,
    ) -> list[Prompt]:
        """Renew what the order rests on, and decide who is in the background. `busy_ns`: until the next step
        with prompts may begin. Returns those who have come there, or back."""
        self._pace = pace
        for sequence in begun:
            if sequence.is_queued:
                self._renew(sequence, sequence.num_scheduled)
        num_tokens = 0
        for prompt in islice(self.queue.lookups(), LOOKUPS_PER_PLAN):
            sequence = sequences[prompt.seq]
            cached = self._cached_tokens(sequence)
            self._renew(sequence, cached)
            num_tokens += cached
            if num_tokens >= LOOKUP_TOKENS_PER_PLAN:
                break
        return self.queue.plan(now_ns, pace, busy_ns)

    def retarget(
        self, sequences: Iterable[Sequence], service_class: str, before: Targets, after: Targets
    ) -> int:
        """Requests of the class that have brought no targets get the new ones, and those that wait a new
        place. Returns how many."""
        changed = retarget(sequences, service_class, before, after)
        for sequence in changed:
            if sequence.phase == "waiting":
                self.remove(sequence)
                sequence.queued = None
                self.add(sequence)
        return len(changed)

    def _renew(self, sequence: Sequence, prior_tokens: int) -> None:
        """When it is due stays as it was at placement: by then it is known what is cached."""
        prompt = _prompt_of(sequence)
        new_tokens = len(sequence.tokens) - prior_tokens
        is_fixed = prompt.is_begun or prompt.due_ns is None
        due_ns = prompt.due_ns if is_fixed else sequence.due_ns(new_tokens)
        self.queue.renew(prompt, prior_tokens, due_ns, self._pace.cost_ns(new_tokens, prior_tokens))
        self._note_latest(sequence, prompt)

    def _note_latest(self, sequence: Sequence, prompt: Prompt) -> None:
        prompt.latest_ns = None
        if prompt.due_ns is not None and not prompt.is_answering and not sequence.request.accept_late:
            prompt.latest_ns = prompt.due_ns + self._max_late_ns

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Recompute from all living sequences who is in the queue; AssertionError on a mismatch."""
        self.queue.check_integrity()
        found = {prompt.seq: prompt.is_begun for prompt in self.queue.all()}
        living = list(sequences)
        wanted = {s.seq: False for s in living if s.phase == "waiting"}
        wanted |= {s.seq: True for s in living if s.phase == "prefilling" and s.tokens_left}
        assert found == wanted, f"queued: {found}, not {wanted}"
        for sequence in living:
            assert sequence.is_queued == (sequence.seq in wanted), f"seq {sequence.seq}: is it queued?"


def _prompt_of(sequence: Sequence) -> Prompt:
    assert sequence.queued is not None, f"seq {sequence.seq} was never queued"
    return sequence.queued
