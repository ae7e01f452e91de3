"""Requests that know what they should be answered, and what became of them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Transport = Literal["http", "http-stream", "socket"]
Action = Literal["stay", "cancel", "vanish"]
"""What the client does in mid-answer: wait for the end, have the request cancelled, or hang up."""

Fate = Literal["finished", "refused", "failed", "left", "lost"]
"""Answered in full; with an error before anything was done; with an error later; ended as its client wished;
without an answer."""

MAX_CHOICES = 3


@dataclass(frozen=True, slots=True)
class Job:
    """`number` is unique in a run. `leave_after`: tokens after which the client acts."""

    number: int
    transport: Transport
    prompt: list[int]
    max_tokens: int
    seed: int
    num_choices: int = 1
    action: Action = "stay"
    leave_after: int = 0
    pause_s: float = 0.0  # between two reads, at first
    logprobs: int | None = None  # they make an answer bulky

    @property
    def request_id(self) -> str:
        return f"chaos-{self.number}"


@dataclass(slots=True)
class Meter:
    """Tokens that have reached clients so far."""

    num_tokens: int = 0


@dataclass(slots=True)
class Choice:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


@dataclass(slots=True)
class Outcome:
    """`choices` hold what had arrived; `detail` says why it did not go well."""

    job: Job
    meter: Meter = field(default_factory=Meter)
    fate: Fate = "lost"
    code: str = ""
    detail: str = ""
    choices: dict[int, Choice] = field(default_factory=dict)

    def add(self, index: int, tokens: list[int], text: str, finish_reason: str | None) -> None:
        choice = self.choices.setdefault(index, Choice())
        choice.tokens += tokens
        choice.text += text
        choice.finish_reason = finish_reason or choice.finish_reason
        self.meter.num_tokens += len(tokens)

    def end(self, fate: Fate, code: str = "", detail: str = "") -> None:
        self.fate, self.code, self.detail = fate, code, detail


@dataclass(frozen=True, slots=True)
class Shape:
    """What jobs look like on a device."""

    vocab_size: int
    context_tokens: int
    longest_prompt: int
    most_tokens: int
    is_greedy: bool  # else every job has its seed


def draw_jobs(rng: random.Random, shape: Shape) -> Iterator[Job]:
    """Without end. A third share a prefix, one in eight is left by its client."""
    common = [rng.randrange(shape.vocab_size) for _ in range(64)]
    number = 0
    while True:
        number += 1
        transport: Transport = rng.choice(["http", "http-stream", "http-stream", "socket", "socket"])
        prompt = [rng.randrange(shape.vocab_size) for _ in range(_length(rng, shape.longest_prompt))]
        if rng.random() < 0.3:
            prompt = (common + prompt)[: shape.longest_prompt]
        room = shape.context_tokens - len(prompt)
        max_tokens = min(_length(rng, shape.most_tokens), room)
        choices = rng.randint(2, MAX_CHOICES) if transport != "socket" and rng.random() < 0.15 else 1
        action: Action = rng.choice(["cancel", "vanish"]) if rng.random() < 0.12 else "stay"
        leave_after = rng.randint(0, max_tokens) if action != "stay" else 0
        seed = rng.getrandbits(48)
        yield Job(number, transport, prompt, max_tokens, seed, choices, action, leave_after)


def _length(rng: random.Random, longest: int) -> int:
    """Mostly short, sometimes as long as allowed."""
    return min(longest, max(1, round(rng.lognormvariate(0, 1) * longest / 6)))
