"""The choices of one answer: n per prompt, generated together and read by one consumer."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from semipd.core.errors import SemipdError
from semipd.core.plan import TokenLogprobs
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import DEFAULT_SERVICE
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.requests.admission import Reservation
from semipd.daemon.requests.generation import Generation, GenerationService, Piece, Prepared, TokenUsage
from semipd.daemon.requests.logprob_limits import ALTERNATIVE_BYTES, AnswerAlternatives, num_alternatives

T = TypeVar("T")

CHOICES_AT_ONCE = 16
"""Looked at in one turn of the loop: a few milliseconds, with many stop strings."""


@dataclass(slots=True, eq=False)
class Choice:
    """`first` is the first choice of its prompt, None if that is itself. `generation` is None until the
    choice is admitted; `started` once a piece has left."""

    index: int
    prepared: Prepared
    first: "Choice | None" = None
    generation: Generation | None = None
    started: bool = False

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        """Computed once per prompt; complete when the choice's first piece is there."""
        generation = (self.first or self).generation
        assert generation is not None, f"choice {self.index} has no generation yet"
        return generation.prompt_logprobs


Update = tuple[Choice, Piece]


class Origin(NamedTuple):
    """Of a request: its public id, when it arrived (CLOCK_MONOTONIC), who sent it, and what it is served
    under."""

    request_id: str
    arrival_ns: int
    caller: Caller
    service: Service = DEFAULT_SERVICE


class Choices:
    """Entered, it admits the first choice of each prompt; left, it cancels what still runs.

    The other choices of a prompt are admitted when the first one has a token: then the prompt is in the
    prefix cache, and is computed once.
    """

    def __init__(
        self,
        service: GenerationService,
        origin: Origin,
        prompts: Sequence[Prepared],
        num_per_prompt: int,
        reservation: Reservation,
    ) -> None:
        """`reservation`: in the waiting queue, for the choices that the engine has not got yet. Raises
        what Reservation.fill does."""
        self._service = service
        self._origin = origin
        self._news = asyncio.Event()
        self._running: list[Choice] = []
        self._is_cancelled = False
        self._num_per_prompt = num_per_prompt
        self._reservation = reservation
        num_tokens = sum(len(prepared.prompt.token_ids) for prepared in prompts)
        reservation.fill(len(prompts) * num_per_prompt, num_tokens * num_per_prompt)
        self.all = _lay_out(prompts, num_per_prompt)
        told = [one.told for one in prompts]
        self._alternatives = AnswerAlternatives(service.alternatives, num_alternatives(told))
        self._num_of_prompts = sum(one.of_prompt for one in told)
        self._per_token = told[0].per_generated_token

    def __enter__(self) -> Self:
        self._alternatives.begin()
        try:
            self._admit([choice for choice in self.all if choice.first is None])
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def usage(self) -> TokenUsage:
        """Of all choices so far; a prompt counts once, however many choices it has."""
        firsts = self.all[:: self._num_per_prompt]
        return TokenUsage(
            sum(len(choice.prepared.prompt.token_ids) for choice in firsts),
            sum(choice.generation.usage.completion_tokens for choice in self.all if choice.generation),
            sum(choice.generation.usage.cached_tokens for choice in firsts if choice.generation),
        )

    @property
    def records(self) -> list[RequestRecord]:
        return [choice.generation.record for choice in self.all if choice.generation]

    async def updates(self) -> AsyncGenerator[list[Update], None]:
        """What is new, at most one piece per choice. Ends when every choice has. Raises SemipdError when one
        fails, and with it the answer."""
        while self._running:
            await self._news.wait()
            self._news.clear()
            fresh, failure = await self._poll()
            if fresh:
                yield fresh
                # Whoever asks for the next update has sent this one.
                await in_turns(fresh, self._settle)
                if self._num_per_prompt > 1:
                    await in_turns(self._followers(fresh), self._follow)
                if self._per_token:
                    self._alternatives.has(self._num_alternatives)
            if failure is not None:
                raise failure

    def cancel(self) -> None:
        """End them all, those too that wait for the first one of their prompt. Those that run say so with
        their last piece. Does not wait."""
        self._is_cancelled = True
        for choice in self._running:
            if choice.generation is not None:
                choice.generation.cancel()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While inside, updates wait for the client to take the one before."""
        generations = [choice.generation for choice in self._running if choice.generation]
        for generation in generations:
            generation.sending(begins=True)
        try:
            yield
        finally:
            for generation in generations:
                generation.sending(begins=False)

    @property
    def _num_alternatives(self) -> int:
        """That an answer which is sent whole has so far; else those of the prompts."""
        return self._num_of_prompts + self._per_token * self._num_generated

    @property
    def _num_bytes(self) -> int:
        """What the answer took, roughly."""
        return ALTERNATIVE_BYTES * (self._num_alternatives + self._num_generated)

    @property
    def _num_generated(self) -> int:
        return sum(choice.generation.num_tokens for choice in self.all if choice.generation)

    async def _poll(self) -> tuple[list[Update], SemipdError | None]:
        """What is new of each choice, and why one has failed: what the others have comes before it."""
        fresh: list[Update] = []
        failure: SemipdError | None = None

        def poll(choice: Choice) -> None:
            nonlocal failure
            try:
                piece = _poll(choice)
            except SemipdError as error:
                failure = failure or error
                return
            if piece is not None:
                fresh.append((choice, piece))

        await in_turns(list(self._running), poll)
        return fresh, failure

    def _settle(self, update: Update) -> None:
        choice, piece = update
        generation = choice.generation
        assert generation is not None
        generation.sent(piece)
        choice.started = True
        if piece.finish_reason is not None:
            self._running.remove(choice)
            generation.close()

    def _followers(self, update: Sequence[Update]) -> list[Choice]:
        """Those that waited for the first choice of their prompt."""
        firsts = [choice for choice, _ in update if choice.first is None]
        siblings = [self.all[one.index + 1 : one.index + self._num_per_prompt] for one in firsts]
        return [sibling for some in siblings for sibling in some if sibling.generation is None]

    def _follow(self, choice: Choice) -> None:
        if not self._is_cancelled:
            self._admit([choice])

    def _admit(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            request_id, arrival_ns, caller, service = self._origin
            choice.generation = self._service.admit(
                request_id, choice.prepared, arrival_ns, self._news, caller, service
            )
            self._running.append(choice)
            self._reservation.hand_over(len(choice.prepared.prompt.token_ids))

    def _close(self) -> None:
        self._reservation.give_up()
        self._alternatives.end()
        self._service.prompts.heap.note(self._num_bytes)
        for choice in self._running:
            if choice.generation is not None:
                choice.generation.close()


async def in_turns(items: Sequence[T], do: Callable[[T], None]) -> None:
    """`do` a few of them in each turn of the loop."""
    for idx, item in enumerate(items):
        if idx % CHOICES_AT_ONCE == 0 and idx:
            await asyncio.sleep(0)
        do(item)


def _lay_out(prompts: Sequence[Prepared], num_per_prompt: int) -> list[Choice]:
    choices: list[Choice] = []
    for prepared in prompts:
        first = Choice(len(choices), prepared)
        choices.append(first)
        for idx in range(1, num_per_prompt):
            choices.append(Choice(len(choices), prepared.sibling(idx), first=first))
    return choices


def _poll(choice: Choice) -> Piece | None:
    assert choice.generation is not None, f"choice {choice.index} runs without a generation"
    return choice.generation.poll()
