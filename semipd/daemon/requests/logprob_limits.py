"""Log-probabilities in answers: how many one answer may hold, and all together that are under way."""

from collections.abc import Sequence
from typing import NamedTuple

from semipd.core.errors import SemipdError

MAX_ANSWER_ALTERNATIVES = 1_000_000
"""Log-probabilities of one answer: about 110 MB in memory, and 60 MB of JSON."""

MAX_HELD_ALTERNATIVES = 4 * MAX_ANSWER_ALTERNATIVES
"""Of all answers between their admission and their last byte."""

EXPECTED_TOKENS = 4096
"""Counted of a choice whose request names no limit: few answers fill a long context. What comes beyond
counts when it is there."""

ALTERNATIVE_BYTES = 110
"""What one takes, formatted."""

RETRY_S = 5.0


class AnswerSize(NamedTuple):
    """What an answer tells of the tokens of one prompt's choices: log-probabilities to each token, and how
    often. `num_generated`: of all choices together."""

    num_prompt: int
    per_prompt_token: int
    num_generated: int
    per_generated_token: int

    @property
    def of_prompt(self) -> int:
        return self.num_prompt * self.per_prompt_token

    @property
    def total(self) -> int:
        return self.of_prompt + self.num_generated * self.per_generated_token


def num_alternatives(told: Sequence[AnswerSize]) -> int:
    """Of an answer. Raises SemipdError(`invalid_value`)."""
    total = sum(one.total for one in told)
    if total > MAX_ANSWER_ALTERNATIVES:
        of_prompt = sum(one.of_prompt for one in told)
        raise SemipdError(
            "invalid_value",
            f"The answer may hold {total} log-probabilities: {told[0].per_prompt_token} to each of "
            f"{sum(one.num_prompt for one in told)} prompt tokens, {told[0].per_generated_token} to each of "
            f"{sum(one.num_generated for one in told)} generated ones, all choices together; the bound is "
            f"{MAX_ANSWER_ALTERNATIVES}.",
            "Lower prompt_logprobs, logprobs or top_logprobs, n or max_tokens, or send fewer prompts.",
            param="prompt_logprobs" if of_prompt * 2 > total else "logprobs",
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
                f"Answers with up to {self.total} log-probabilities are on their way; with "
                f"{count} more the bound of {MAX_HELD_ALTERNATIVES} would be exceeded.",
                "Send the request again later, or ask for fewer log-probabilities.",
                retry_after_s=RETRY_S,
            )
        self.total += count

    def give(self, count: int) -> None:
        self.total -= count


class AnswerAlternatives:
    """Those of one answer among all. `expected`: taken when it begins, given back when it is over."""

    def __init__(self, held: HeldAlternatives, expected: int) -> None:
        self._held = held
        self._expected = expected
        self._taken = 0

    def begin(self) -> None:
        """Raises SemipdError(`overloaded`)."""
        self._held.take(self._expected)
        self._taken = self._expected

    def has(self, count: int) -> None:
        """The answer holds so many now. Raises SemipdError: `answer_too_large`, `overloaded`."""
        if count <= self._taken:
            return
        if count > MAX_ANSWER_ALTERNATIVES:
            raise SemipdError(
                "answer_too_large",
                f"The answer has reached {count} log-probabilities; the bound is {MAX_ANSWER_ALTERNATIVES}.",
                "Name a max_tokens, ask for fewer alternatives, or use stream=true.",
            )
        self._held.take(count - self._taken)
        self._taken = count

    def end(self) -> None:
        """Idempotent."""
        self._held.give(self._taken)
        self._taken = 0
