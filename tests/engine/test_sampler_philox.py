"""Philox against the known answers of the Random123 distribution and against plain integers."""

import random

import pytest
import torch

from semipd.sampling.philox import philox4x32, seed_words, uniforms

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Straight from the paper, one integer at a time."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def vector_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    return tuple(int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1)))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert scalar_philox(counter, key) == expected
    assert vector_philox(counter, key) == expected


def test_many_random_inputs_match_the_scalar_form() -> None:
    rng = random.Random(1)
    for _ in range(300):
        counter = tuple(rng.getrandbits(32) for _ in range(4))
        key = (rng.getrandbits(32), rng.getrandbits(32))
        assert vector_philox(counter, key) == scalar_philox(counter, key)


def test_uniform_is_the_top_24_bits_of_the_first_word() -> None:
    rng = random.Random(2)
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1, *(rng.getrandbits(64) for _ in range(50))]
    positions = [0, 1, 2**31, 2**32, 2**40 + 5, *(rng.getrandbits(20) for _ in range(50))]
    drawn = uniforms(seed_words(seeds, torch.device("cpu")), torch.tensor(positions))
    assert drawn.dtype == torch.float32
    for seed, position, value in zip(seeds, positions, drawn.tolist(), strict=True):
        counter = (position % 2**32, position >> 32, 0, 0)
        word = scalar_philox(counter, (seed % 2**32, seed >> 32))[0]
        assert value == (word >> 8) / 2**24


def test_draws_of_one_token_differ() -> None:
    key = seed_words([7], torch.device("cpu"))
    first, second = (uniforms(key, torch.tensor([3]), draw) for draw in (0, 1))
    assert first != second


def test_uniforms_cover_zero_to_one_evenly() -> None:
    key = seed_words([42], torch.device("cpu"))
    drawn = uniforms(key, torch.arange(100_000))
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    counts = torch.histc(drawn, bins=20, min=0.0, max=1.0)
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    # 99.9th percentile of chi-square with 19 degrees of freedom.
    assert chi_square < 43.8, chi_square
