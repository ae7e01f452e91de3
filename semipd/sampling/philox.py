"""Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised.

A counter-based generator: the random number of a token depends on its request's seed and its position
and on nothing else, so a preempted, resumed or differently batched request draws the same numbers.
"""

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Ten rounds. All tensors int64 of broadcastable shapes holding 32-bit words; so is the result."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Both factors are below 2^32, so the low 64 bits that int64 keeps are the whole product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def seed_key(seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the bits of unsigned 64-bit seeds, int64: (low word, high word) of each, int64."""
    return seeds & _MASK, (seeds >> 32) & _MASK


def seed_words(seeds: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The key of each 64-bit seed: (low word, high word), int64 [len(seeds)]."""
    low = torch.tensor([seed & _MASK for seed in seeds], dtype=torch.int64, device=device)
    high = torch.tensor([seed >> 32 for seed in seeds], dtype=torch.int64, device=device)
    return low, high


def uniforms(key: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor, draw: int = 0) -> torch.Tensor:
    """One number in [0, 1) per position, fp32, shaped like `positions` (int64, broadcast with the key).

    Counter = (position low word, position high word, draw, 0). The number is the top 24 bits of the
    first output word times 2^-24: exact in fp32, hence the same bits on every device.
    """
    zero = torch.zeros_like(positions)
    word = philox4x32((positions & _MASK, positions >> 32, zero + draw, zero), key)[0]
    return (word >> 8).to(torch.float32) * 2.0**-24
