"""Parameters within their ranges never leave a row of finite logits without a token, not even together."""

import itertools
import random

import pytest
import torch
from support.sampled import checked_tokens

from semipd.core.sampling import LOGIT_BIAS, RANGES, SMALLEST, SamplingParams
from semipd.sampling.batch import SamplingBatch, SamplingRow

VOCAB_SIZE = 70
LARGEST_LOGIT = 3e36

CORNERS: dict[str, list[float]] = {
    "temperature": [0.0, SMALLEST, 1.0, RANGES["temperature"].high],
    "top_k": [0, 1, VOCAB_SIZE - 1],
    "top_p": [SMALLEST, 1e-30, 1.0],
    "min_p": [0.0, 1e-320, 1.0],
    "repetition_penalty": [RANGES["repetition_penalty"].low, 1.0, RANGES["repetition_penalty"].high],
    "presence_penalty": [RANGES["presence_penalty"].low, RANGES["presence_penalty"].high],
    "frequency_penalty": [RANGES["frequency_penalty"].low, 0.0, RANGES["frequency_penalty"].high],
}


def rows(rng: random.Random) -> list[SamplingRow]:
    found = []
    for values in rng.sample(list(itertools.product(*CORNERS.values())), 500):
        fields = dict(zip(CORNERS, values, strict=True))
        bias = tuple((token, rng.choice([LOGIT_BIAS.low, LOGIT_BIAS.high])) for token in range(VOCAB_SIZE))
        params = SamplingParams(
            max_tokens=9,
            seed=rng.getrandbits(64),
            logit_bias=rng.choice([(), bias]),
            stop_token_ids=tuple(range(VOCAB_SIZE - 1)),
            min_tokens=rng.choice([0, 9]),
            **fields,  # type: ignore[arg-type]
        )
        params.validate(VOCAB_SIZE)
        history = [rng.randrange(4) for _ in range(8)]
        found.append(SamplingRow(params, history, rng.randrange(1, 9)))
    return found


@pytest.mark.parametrize("scale", [1e4, LARGEST_LOGIT])
def test_corners_of_the_ranges_have_a_token(scale: float) -> None:
    rng = random.Random(3)
    of_batch = rows(rng)
    generator = torch.Generator().manual_seed(1)
    logits = (torch.rand(len(of_batch), VOCAB_SIZE, generator=generator) * 2 - 1) * scale
    batch = SamplingBatch(of_batch, VOCAB_SIZE, torch.device("cpu"))
    for _ in range(3):
        tokens = batch.sample(logits)
        assert all(0 <= token < VOCAB_SIZE for token in checked_tokens(tokens))
        batch.advance(tokens)
