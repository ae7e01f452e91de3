"""Tokens of a sampler under test."""

import torch

from semipd.core.errors import SemipdError


def checked_tokens(sampled: torch.Tensor) -> list[int]:
    """The ids of a `SamplingBatch.sample`. Raises SemipdError(`invalid_logits`) if a row had none to give."""
    tokens: list[int] = sampled.tolist()
    if bad := [row for row, token in enumerate(tokens) if token < 0]:
        raise SemipdError(
            "invalid_logits",
            f"{len(bad)} of {len(tokens)} rows of logits hold NaN or infinity, or allow no token: {bad[:8]}.",
        )
    return tokens
