"""What to send and when: a trace's rows or made-up ones, at its times, at random, or in a closed loop."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from semipd.core.errors import SemipdError


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """`due_s`: seconds from the start of the run; None: whenever a place is free (closed loop).
    `block_hashes`: what the prompt is made of, block by block; equal hashes are equal tokens."""

    prompt_tokens: int
    output_tokens: int
    due_s: float | None = None
    block_hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenRange:
    """A number of tokens, or a range from which one is drawn uniformly. Both ends included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "TokenRange":
        """ "512" or "128-1024". Raises ValueError."""
        low, dash, high = text.partition("-")
        parsed = cls(int(low), int(high if dash else low))
        if not 1 <= parsed.low <= parsed.high:
            raise ValueError(f"{text!r} is not a positive number or range")
        return parsed

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


def made_up(
    num_requests: int, prompt_tokens: TokenRange, output_tokens: TokenRange, seed: int
) -> list[PlannedRequest]:
    rng = random.Random(f"lengths {seed}")
    return [PlannedRequest(prompt_tokens.draw(rng), output_tokens.draw(rng)) for _ in range(num_requests)]


def poisson(requests: Sequence[PlannedRequest], rate_rps: float, seed: int) -> list[PlannedRequest]:
    """The same requests at independent, exponentially distributed gaps of mean 1 / rate."""
    rng = random.Random(f"arrivals {seed}")
    due_s, timed = 0.0, []
    for request in requests:
        due_s += rng.expovariate(rate_rps)
        timed.append(replace(request, due_s=due_s))
    return timed


def closed_loop(requests: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    return [replace(request, due_s=None) for request in requests]


def cut(
    requests: Sequence[PlannedRequest], window_s: tuple[float, float] | None, speed: float
) -> list[PlannedRequest]:
    """Those due in [window), the window's start becoming time 0, played `speed` times as fast.

    Without a window the first request's time becomes 0. Raises SemipdError when nothing is left.
    """
    times = [request.due_s for request in requests if request.due_s is not None]
    assert len(times) == len(requests), "only requests with times can be cut"
    begin, end = window_s or (min(times, default=0.0), float("inf"))
    kept = [
        replace(request, due_s=(due_s - begin) / speed)
        for request, due_s in zip(requests, times, strict=True)
        if begin <= due_s < end
    ]
    if not kept:
        span = f"{min(times, default=0):g} to {max(times, default=0):g} s"
        raise SemipdError(
            "empty_workload", f"No request falls into {begin:g}:{end:g} s; the trace has {span}."
        )
    return kept


def without_long(requests: Sequence[PlannedRequest], max_tokens: int) -> list[PlannedRequest]:
    """Those whose prompt and output together are at most `max_tokens`."""
    kept = [request for request in requests if request.prompt_tokens + request.output_tokens <= max_tokens]
    if not kept:
        raise SemipdError(
            "empty_workload", f"All {len(requests)} requests are longer than {max_tokens} tokens in all."
        )
    return kept
