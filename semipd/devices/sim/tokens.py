"""Made-up tokens: a pure function of seed and position, so that nothing the engine does can change them."""

from collections.abc import Sequence
from functools import cache

from semipd.core.plan import TokenLogprobs

TABLE_SIZE = 4096
TokenRun = tuple[int]
"""The one token that a step of this device gives a sequence."""

_MASK64 = 2**64 - 1


@cache
def token_table(vocab_size: int) -> tuple[int, ...]:
    """TABLE_SIZE token ids in an order without pattern; a text is a walk through it."""
    return tuple(_mix(idx) % vocab_size for idx in range(TABLE_SIZE))


@cache
def token_runs(vocab_size: int) -> tuple[TokenRun, ...]:
    """Each of `token_table` as a step's result has it."""
    return tuple((token,) for token in token_table(vocab_size))


def walk_start(seed: int) -> int:
    """Where in the table a sequence's walk would be at position 0."""
    return _mix(seed ^ 0x5DEECE66D) % TABLE_SIZE


def made_up_tokens(seed: int, vocab_size: int, start: int, count: int) -> list[int]:
    """Tokens at positions [start, start + count) of a sequence: what every run must emit there."""
    table, begin = token_table(vocab_size), walk_start(seed)
    return [table[(begin + position) % TABLE_SIZE] for position in range(start, start + count)]


def made_up_logprobs(token: int, num_alternatives: int, vocab_size: int) -> TokenLogprobs:
    """Falling probabilities for the token and the ids after it."""
    others: Sequence[tuple[int, float]] = [
        ((token + idx) % vocab_size, -0.7 - idx) for idx in range(num_alternatives)
    ]
    return TokenLogprobs(token, -0.7, tuple(others), rank=1)


def _mix(value: int) -> int:
    """Finaliser of splitmix64."""
    z = (value * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
