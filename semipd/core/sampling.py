"""Sampling parameters: what a request asks of the sampler, validated once, then frozen."""

import math
from dataclasses import dataclass

from semipd.core.errors import SemipdError

MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Everything sampling depends on besides logits, token history and position (DESIGN section 3).

    `seed` is concrete: whoever admits a request draws one if the client gave none, so that a
    preempted or resumed request uses the same random numbers again.
    `stop_token_ids` already holds the model's end-of-sequence ids unless the client ignores them.
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
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None  # number of alternatives; 0: only the sampled token's own
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def validate(self, vocab_size: int) -> None:
        """Raises SemipdError(`invalid_value`, param=the field) on the first bad field."""
        checks: list[tuple[str, bool, str]] = [
            ("max_tokens", self.max_tokens >= 1, "must be at least 1"),
            ("seed", 0 <= self.seed <= MAX_SEED, "must be between 0 and 2^64 - 1"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "must be between 0 and 100"),
            ("top_k", self.top_k >= 0, "must be 0 (off) or positive"),
            ("top_p", 0.0 < self.top_p <= 1.0, "must be in (0, 1]"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "must be in [0, 1]"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf, "must be positive"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "must be in [-2, 2]"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "must be in [-2, 2]"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "must be between 0 and max_tokens"),
            (
                "logprobs",
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"must be 0 to {MAX_LOGPROBS}",
            ),
            (
                "prompt_logprobs",
                self.prompt_logprobs in (None, vocab_size) or 0 <= self.prompt_logprobs <= MAX_LOGPROBS,
                f"must be 0 to {MAX_LOGPROBS}, or the whole vocabulary's {vocab_size}",
            ),
            (
                "logit_bias",
                all(0 <= t < vocab_size and -100.0 <= b <= 100.0 for t, b in self.logit_bias),
                f"needs token ids below {vocab_size} and values in [-100, 100]",
            ),
            (
                "stop_token_ids",
                all(0 <= t < vocab_size for t in self.stop_token_ids),
                f"needs token ids below {vocab_size}",
            ),
        ]
        for name, ok, rule in checks:
            if not ok:
                raise SemipdError("invalid_value", f"{name} {rule}; got {getattr(self, name)!r}.", param=name)
