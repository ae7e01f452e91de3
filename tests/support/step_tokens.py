"""Reads results of steps that yield one token for each sequence."""

from collections.abc import Iterable


def one_each(tokens: Iterable[Iterable[int]]) -> list[int]:
    """The only token of each sequence."""
    return [token for (token,) in tokens]
