"""Our decoder against transformers, fp32, every family: any chunking, any block order, merged steps."""

import random
from pathlib import Path

import pytest
import torch
from support.paged import PagedModel, Sequence, step_rows
from support.tiny_models import FAMILIES, reference_logits, tiny_checkpoint
from torch import Tensor

from semipd.devices.cpu.math import ops

TOLERANCE = 1e-4
NUM_BLOCKS = 64


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory, request.param)


@pytest.fixture(params=["SDPA", "pool order"], autouse=True)
def _decode_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways for decode rows, whatever the size of the batch."""
    monkeypatch.setattr(ops, "MAX_COPIED_SEQS", 100 if request.param == "SDPA" else 0)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_parity(folder: Path, sequence: Sequence) -> None:
    ours = torch.cat(sequence.logits)
    theirs = reference_logits(folder, sequence.token_ids[: sequence.computed])
    assert relative_difference(ours, theirs[-ours.shape[0] :]) < TOLERANCE


def random_sequences(rng: random.Random, lengths: list[int], vocab_size: int) -> list[Sequence]:
    """With scattered block tables."""
    blocks = rng.sample(range(1, NUM_BLOCKS), NUM_BLOCKS - 1)
    sequences = []
    for length in lengths:
        table = [blocks.pop() for _ in range(-(-length // 16))]
        sequences.append(Sequence([rng.randrange(vocab_size) for _ in range(length)], table))
    return sequences


def test_whole_prompt_then_decode(folder: Path) -> None:
    model = PagedModel(folder)
    [sequence] = random_sequences(random.Random(1), [150], model.config.vocab_size)
    model.step([(sequence, 100)])
    assert_parity(folder, sequence)
    for _ in range(50):
        model.step([(sequence, 1)])
        model.poison_unused_slots(sequence)
    assert_parity(folder, sequence)


@pytest.mark.parametrize("seed", range(4))
def test_chunks_of_random_sizes(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    model = PagedModel(folder)
    [sequence] = random_sequences(rng, [200], model.config.vocab_size)
    while sequence.computed < 200:
        model.step([(sequence, min(rng.choice([1, 3, 16, 17, 50]), 200 - sequence.computed))])
        model.poison_unused_slots(sequence)
    assert_parity(folder, sequence)


@pytest.mark.parametrize("seed", range(4))
def test_merged_steps_of_several_sequences(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    model = PagedModel(folder)
    sequences = random_sequences(rng, [1, 16, 17, 90, 130, 200], model.config.vocab_size)
    while unfinished := [s for s in sequences if s.computed < len(s.token_ids)]:
        active = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        model.step([(s, min(rng.choice([1, 1, 1, 5, 40]), len(s.token_ids) - s.computed)) for s in active])
        for sequence in sequences:
            model.poison_unused_slots(sequence)
    for sequence in sequences:
        assert_parity(folder, sequence)


def test_shared_prefix_blocks(folder: Path) -> None:
    rng = random.Random(5)
    model = PagedModel(folder)
    [first, *others] = random_sequences(rng, [100, 60, 60, 60], model.config.vocab_size)
    model.step([(first, 64)])
    for num_shared, other in enumerate(others, start=2):
        other.token_ids = first.token_ids[: num_shared * 16] + other.token_ids
        other.block_table = first.block_table[:num_shared] + other.block_table
        other.computed = num_shared * 16
    model.step([(other, 30) for other in others])
    for _ in range(25):
        model.step([(sequence, 1) for sequence in [*others, first]])
    for sequence in [first, *others]:
        assert_parity(folder, sequence)


def test_contiguous_blocks_are_read_in_place(folder: Path) -> None:
    """A pool in order is the fast path's best case; the tables of two sequences are neighbours in it."""
    model = PagedModel(folder, num_blocks=70)
    rng = random.Random(6)
    tokens = [rng.randrange(model.config.vocab_size) for _ in range(500)]
    sequences = [Sequence(tokens, list(range(1, 33))), Sequence(tokens[::-1], list(range(35, 67)))]
    model.step([(sequence, 490) for sequence in sequences])
    for _ in range(10):
        model.step([(sequence, 1) for sequence in sequences])
    for sequence in sequences:
        assert_parity(folder, sequence)


def test_only_wanted_rows_have_logits(folder: Path) -> None:
    model = PagedModel(folder)
    [sequence] = random_sequences(random.Random(7), [40], model.config.vocab_size)
    rows = step_rows([(sequence, 40)])
    everything = model.decoder.forward(rows, torch.arange(40)).logits
    some = model.decoder.forward(rows, torch.tensor([39, 3, 3])).logits
    none = model.decoder.forward(rows, torch.empty(0, dtype=torch.int64)).logits
    assert relative_difference(some, everything[[39, 3, 3]]) < 1e-6
    assert none.shape == (0, model.config.vocab_size)


def test_bfloat16_stays_close(folder: Path) -> None:
    model = PagedModel(folder, dtype="bfloat16")
    [sequence] = random_sequences(random.Random(8), [120], model.config.vocab_size)
    model.step([(sequence, 70)])
    for _ in range(50):
        model.step([(sequence, 1)])
    theirs = reference_logits(folder, sequence.token_ids)
    assert relative_difference(torch.cat(sequence.logits), theirs) < 0.1
