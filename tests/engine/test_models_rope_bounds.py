"""Rotary parameters that cannot work are refused; those that are accepted give finite frequencies."""

from pathlib import Path
from typing import Any

import pytest

from semipd.checkpoints.fields import Fields
from semipd.checkpoints.rope_config import parse_rope
from semipd.core.errors import SemipdError
from semipd.network.config import RopeConfig
from semipd.network.rope import inverse_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def parsed(theta: object, **scaling: Any) -> RopeConfig:
    data = {"rope_theta": theta, "rope_scaling": scaling or None}
    return parse_rope(Fields(data, Path("config.json")), 2048)


@pytest.mark.parametrize(
    ("theta", "scaling", "key"),
    [
        (1, YARN, "rope_theta"),
        (0.5, YARN, "rope_theta"),
        (0.5, {}, "rope_theta"),
        (1e4, YARN | {"factor": 1e7}, "factor"),
        (1e4, YARN | {"factor": 1e-9}, "factor"),
        (1e4, YARN | {"factor": 1e6, "original_max_position_embeddings": 100_000}, "factor"),
        (1e4, {"rope_type": "linear", "factor": 1e-300}, "factor"),
        (1e4, LLAMA3 | {"factor": 1e29}, "factor"),
        (1e4, YARN | {"attention_factor": 0}, "attention_factor"),
        (1e4, YARN | {"attention_factor": 1e20}, "attention_factor"),
        (1e4, YARN | {"mscale": 1e20, "mscale_all_dim": 1}, "mscale"),
        (1e4, YARN | {"beta_fast": 1e-320}, "beta_fast"),
        (1e4, YARN | {"beta_slow": 1e29}, "beta_slow"),
        (1e4, YARN | {"original_max_position_embeddings": 2**40}, "original_max_position_embeddings"),
    ],
)
def test_refused(theta: float, scaling: dict[str, Any], key: str) -> None:
    with pytest.raises(SemipdError) as refused:
        parsed(theta, **scaling)
    assert refused.value.code == "checkpoint_corrupt"
    assert key in refused.value.message


@pytest.mark.parametrize("theta", [1.0000001, 1e4, 1e30])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 1e6},
        {"rope_type": "linear", "factor": 1e-3},
        LLAMA3 | {"factor": 1e6},
        YARN | {"factor": 1e6, "original_max_position_embeddings": 1},
        YARN | {"beta_fast": 1e6, "beta_slow": 1e-3},
        YARN | {"attention_factor": 1e3},
        YARN | {"mscale": 1e3, "mscale_all_dim": 1e-3},
    ],
)
def test_what_is_accepted_is_finite(theta: float, scaling: dict[str, Any]) -> None:
    frequencies, scale = inverse_frequencies(parsed(theta, **scaling), 64)
    assert frequencies.isfinite().all()
    assert 0 < scale < 1e4
