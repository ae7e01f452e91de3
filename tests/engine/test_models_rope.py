"""Every RoPE variant against transformers: frequencies, attention scale, and logits of a whole model."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paged import PagedModel, Sequence
from support.tiny_models import LLAMA3_ROPE, reference_logits, tiny_checkpoint

from semipd.checkpoints.config import load_model_config
from semipd.network.rope import inverse_frequencies, rotate, rotation

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
    "llama3": LLAMA3_ROPE,
    "yarn": YARN,
    "yarn attention_factor": YARN | {"attention_factor": 1.3},
    "yarn mscale": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7},
    "yarn betas": YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn untruncated": YARN | {"truncate": False},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def transformers_parameters(folder: Path) -> tuple[torch.Tensor, float]:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    return rotary.inv_freq, rotary.attention_scaling


def test_frequencies_and_scale(tmp_path_factory: pytest.TempPathFactory, variant: dict[str, Any]) -> None:
    folder = tiny_checkpoint(tmp_path_factory, "llama", rope_parameters=dict(variant), head_dim=64)
    expected, expected_scale = transformers_parameters(folder)
    frequencies, scale = inverse_frequencies(load_model_config(folder).rope, head_dim=64)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert math.isclose(scale, expected_scale, rel_tol=1e-9)


def test_logits(tmp_path_factory: pytest.TempPathFactory, variant: dict[str, Any]) -> None:
    folder = tiny_checkpoint(tmp_path_factory, "llama", rope_parameters=dict(variant), head_dim=64)
    model = PagedModel(folder)
    rng = random.Random(0)
    sequence = Sequence([rng.randrange(model.config.vocab_size) for _ in range(400)], list(range(1, 26)))
    model.step([(sequence, 395)])
    for _ in range(5):
        model.step([(sequence, 1)])
    ours, theirs = torch.cat(sequence.logits), reference_logits(folder, sequence.token_ids)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-4


def test_older_spelling_means_the_same(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, variant in VARIANTS.items():
        folder = tiny_checkpoint(tmp_path_factory, "llama", rope_parameters=dict(variant), head_dim=64)
        config = json.loads((folder / "config.json").read_text())
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        config["rope_scaling"] = scaling | {"type": scaling.pop("rope_type")} if name != "default" else None
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_model_config(tmp_path) == load_model_config(folder), name


def test_rotation_keeps_angles_between_positions_only() -> None:
    """The defining property: the product of a rotated query and key depends on their distance alone."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 32, generator=generator)
    frequencies = 1.0 / 100.0 ** (torch.arange(0, 32, 2) / 32)

    def product(q_position: int, k_position: int) -> float:
        rotated_q = rotate(q, *rotation(torch.tensor([q_position]), frequencies, 1.0))
        rotated_k = rotate(k, *rotation(torch.tensor([k_position]), frequencies, 1.0))
        return float((rotated_q * rotated_k).sum())

    assert math.isclose(product(7, 3), product(104, 100), rel_tol=1e-4)
    assert not math.isclose(product(7, 3), product(7, 4), rel_tol=1e-2)
