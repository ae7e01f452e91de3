"""Answers that show a prompt with the whole vocabulary: how large one may be, and all together."""

from collections.abc import Sequence

from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_LOGPROBS

MAX_PROMPT_ALTERNATIVES = 1_000_000
"""Log-probabilities of one such answer: about 110 MB in memory, and 60 MB of JSON."""

MAX_HELD_ALTERNATIVES = 4 * MAX_PROMPT_ALTERNATIVES
"""Of all such answers between their admission and their last byte."""

RETRY_S = 5.0


def num_alternatives(wanted: Sequence[tuple[int, int | None]], num_per_prompt: int) -> int:
    """Of an answer to prompts of so many tokens, with so many alternatives for each; those that clients may
    ask for by number do not count. Raises SemipdError(`invalid_value`)."""
    large = [(tokens, count) for tokens, count in wanted if count is not None and count > MAX_LOGPROBS]
    total = num_per_prompt * sum((tokens - 1) * count for tokens, count in large)
    if total > MAX_PROMPT_ALTERNATIVES:
        raise SemipdError(
            "invalid_value",
            f"prompt_logprobs=-1 asks for {total} log-probabilities: {sum(tokens for tokens, _ in large)} "
            f"prompt tokens, a vocabulary of {large[0][1]}, n={num_per_prompt}; the bound is "
            f"{MAX_PROMPT_ALTERNATIVES}.",
            f"Send a shorter prompt, or prompt_logprobs of at most {MAX_LOGPROBS}.",
            param="prompt_logprobs",
        )
    return total


class HeldAlternatives:
    """Counts them, and refuses beyond the bound."""

    def __init__(self) -> None:
        self.total = 0

    def take(self, count: int) -> None:
        """Raises SemipdError(`overloaded`)."""
        if count and self.total + count > MAX_HELD_ALTERNATIVES:
            raise SemipdError(
                "overloaded",
                f"Answers with {self.total} log-probabilities of whole vocabularies are on their way; with "
                f"{count} more the bound of {MAX_HELD_ALTERNATIVES} would be exceeded.",
                "Send the request again later, or with fewer prompt_logprobs.",
                retry_after_s=RETRY_S,
            )
        self.total += count

    def give(self, count: int) -> None:
        self.total -= count
