"""Requests for runs that need no published trace."""

import math
import random
from collections.abc import Iterator

from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.slo import NO_TARGETS, Targets

PROMPT_TOKENS = (64, 3000)
OUTPUT_TOKENS = (16, 250)


def poisson(
    rate: float, duration_s: float, vocab_size: int, seed: int = 1, targets: Targets = NO_TARGETS
) -> Iterator[Request]:
    """`rate` requests per second at exponential gaps; lengths log-uniform; prompts share no prefix."""
    rng = random.Random(seed)
    at_s, number = rng.expovariate(rate), 0
    while at_s < duration_s:
        number += 1
        prompt = [rng.randrange(vocab_size) for _ in range(_log_uniform(rng, *PROMPT_TOKENS))]
        params = SamplingParams(_log_uniform(rng, *OUTPUT_TOKENS), seed=number)
        yield Request(SeqId(number), str(number), prompt, params, int(at_s * 1e9), targets=targets)
        at_s += rng.expovariate(rate)


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
