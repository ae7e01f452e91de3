"""One request as the engine sees it: its tokens, its place in memory and how far it has come."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from semipd.core.request import Request, SeqId
from semipd.core.slo import Targets
from semipd.memory.kv import Placement
from semipd.sched.order import Prompt

Phase = Literal["waiting", "prefilling", "decoding", "yielding", "gone"]
"""yielding: preempted, but a step in flight may still write its blocks; gone: finished, likewise."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Changed only by the scheduler and by `settle`.

    `num_scheduled` counts tokens whose KV computation has been launched, `num_computed` those whose step has
    settled. A decode step in flight counts with the most tokens that it may compute, until it settles. While
    decoding, len(tokens) - 1 == num_computed: the newest token is not computed. A decode step may be launched
    while num_scheduled < decode_limit: the blocks have room for it, and `max_computed` is not reached.
    """

    request: Request
    tokens: list[int]
    max_computed: int  # tokens when it ends by its length: the newest is never computed
    stop_ids: frozenset[int]
    phase: Phase = "waiting"
    placement: Placement | None = None
    decode_limit: int = 0
    num_scheduled: int = 0
    num_computed: int = 0
    num_inflight: int = 0  # steps
    num_preemptions: int = 0
    cached_tokens: int = 0
    queued: Prompt | None = None  # what the queue knows of it, or knew
    first_token_ns: int = 0
    num_prompt_logprobs: int = 0  # entries already sent

    @classmethod
    def of(cls, request: Request, max_model_len: int) -> "Sequence":
        limit = min(len(request.prompt) + request.params.max_tokens, max_model_len)
        tokens = request.prompt + list(request.emitted)
        return cls(request, tokens, limit - 1, frozenset(request.params.stop_token_ids))

    @property
    def seq(self) -> SeqId:
        return self.request.seq

    @property
    def age_key(self) -> tuple[int, int]:
        """Sorts by arrival; unique."""
        return self.request.arrival_ns, self.request.seq

    @property
    def tokens_left(self) -> int:
        """Of its prompt, to be launched."""
        return len(self.tokens) - self.num_scheduled

    def due_ns(self, new_tokens: int) -> int | None:
        """When its first token should be there, if so many tokens are not cached; None: whenever."""
        return self.request.targets.due_ns(self.request.arrival_ns, new_tokens)

    @property
    def is_queued(self) -> bool:
        return self.queued is not None and self.queued.is_queued

    @property
    def in_background(self) -> bool:
        return self.queued is not None and self.queued.in_background

    @property
    def max_total_tokens(self) -> int:
        return self.max_computed + 1

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def may_reuse(self) -> bool:
        """A cached prefix has no logits: while prompt log-probabilities are owed, compute everything."""
        return self.request.params.prompt_logprobs is None or (
            self.num_prompt_logprobs == len(self.request.prompt) - 1
        )

    def check_integrity(self) -> None:
        numbers = (
            f"seq {self.seq} {self.phase}: {self.num_computed}/{self.num_scheduled}/{len(self.tokens)} tokens"
        )
        assert 0 <= self.num_computed <= self.num_scheduled, numbers
        assert len(self.tokens) <= self.max_total_tokens, f"{numbers}, limit {self.max_total_tokens}"
        assert (self.num_inflight == 0) or self.placement is not None, f"{numbers}, in flight without blocks"
        if self.phase == "waiting":
            assert self.placement is None, f"{numbers}, waiting with blocks"
            assert self.num_scheduled == 0, numbers
        if self.phase in ("prefilling", "decoding"):
            assert self.placement is not None, f"{numbers}, running without blocks"
        if self.phase == "decoding":
            assert self.num_computed == len(self.tokens) - 1, numbers


def retarget(
    sequences: Iterable[Sequence], service_class: str, before: Targets, after: Targets
) -> list[Sequence]:
    """Give those of the class that have brought no targets the new ones. Returns them."""
    changed: list[Sequence] = []
    for sequence in sequences:
        request = sequence.request.retargeted(service_class, before, after)
        if request is not sequence.request:
            sequence.request = request
            changed.append(sequence)
    return changed
