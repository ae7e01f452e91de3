"""Sampling parameters: what a request asks of the sampler, validated once, then frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.errors import SemipdError
from semipd.core.ranges import Range

MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1
MAX_COUNT = 2**31 - 1

MAX_LOGIT_BIASES = 1024
"""Entries of logit_bias; OpenAI's clients send at most 300."""

MAX_STOP_TOKEN_IDS = 1024
"""Different ids in one list of them, a client's or a checkpoint's."""

MAX_ALLOWED_TOKEN_IDS = 4096

RANGES: dict[str, Range] = {
    "max_tokens": Range(1, MAX_COUNT),
    "seed": Range(0, MAX_SEED),
    "temperature": Range(0, 100),
    "top_k": Range(0, MAX_COUNT),
    "top_p": Range(0, 1, above_low=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0.01, 100.0),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "min_tokens": Range(0, MAX_COUNT),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
}
"""Of every numeric field of SamplingParams.

Within them no finite logit below 3e36 can leave fp32, the largest number of which is 3.4e38: a repetition
penalty multiplies by at most 100, the biases of a token add at most 100, and a count of 2^31 tokens times a
penalty of 2 adds 4e9.
"""

LOGIT_BIAS = Range(-100, 100)
SMALLEST = 2.0**-126
"""The smallest normal number of fp32: a temperature or top_p below it would be zero to the sampler."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Everything sampling depends on besides logits, token history and position (DESIGN section 3).

    `seed` is concrete: whoever admits a request draws one if the client gave none, so that a
    preempted or resumed request uses the same random numbers again.
    `stop_token_ids` already holds the model's end-of-sequence ids unless the client ignores them.
    `allowed_token_ids`: no other token is ever sampled; empty: any may be.
    Penalties follow vLLM: presence and frequency count output tokens, repetition counts prompt and output.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None  # number of alternatives; 0: only the sampled token's own
    prompt_logprobs: int | None = None  # likewise; the vocabulary's size: all of it

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def validate(self, vocab_size: int) -> None:
        """Raises SemipdError(`invalid_value`, param=the field) on the first bad field, or on fields that
        together leave no token to sample."""
        for name, limits in RANGES.items():
            value = getattr(self, name)
            is_whole = name == "prompt_logprobs" and value == vocab_size
            if value is not None and not is_whole and not limits.holds(value):
                raise _invalid(name, f"must be {limits}; got {value!r:.80}.")
        if self.min_tokens > self.max_tokens:
            raise _invalid(
                "min_tokens", f"must be between 0 and max_tokens={self.max_tokens}; got {self.min_tokens}."
            )
        check_ids([token for token, _ in self.logit_bias], vocab_size, "logit_bias")
        check_ids(self.allowed_token_ids, vocab_size, "allowed_token_ids")
        check_ids(self.stop_token_ids, vocab_size, "stop_token_ids")
        for token, bias in self.logit_bias:
            if not LOGIT_BIAS.holds(bias):
                raise _invalid("logit_bias", f"of token {token} must be {LOGIT_BIAS}; got {bias!r:.80}.")
        if self.min_tokens:
            self._check_choice(vocab_size)

    def _check_choice(self, vocab_size: int) -> None:
        """Until min_tokens a stop token is impossible: another must be possible."""
        allowed, stops = set(self.allowed_token_ids), set(self.stop_token_ids)
        left = len(allowed - stops) if allowed else vocab_size - len(stops)
        if left <= 0:
            which = "allowed_token_ids" if allowed else "the vocabulary"
            raise _invalid(
                "min_tokens",
                f"must be 0 here, not {self.min_tokens}: all {len(allowed) or vocab_size} tokens of {which} "
                "are stop tokens, so that none is left before the end.",
            )


def check_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises SemipdError(`invalid_value`) that names the first id outside the vocabulary."""
    if token_ids and (max(token_ids) >= vocab_size or min(token_ids) < 0):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise _invalid(param, f"holds the token id {wrong}; the vocabulary has {vocab_size} tokens.")


def _invalid(param: str, problem: str) -> SemipdError:
    return SemipdError("invalid_value", f"{param} {problem}", param=param)
