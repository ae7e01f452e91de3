"""Keys of generation_config.json that the daemon does not read are named once, at the start."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.fake_model import fake_model

from semipd.daemon.model.files import ModelFiles
from semipd.daemon.model.generation_keys import unread_keys


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suppress_tokens", [5]),
        ("begin_suppress_tokens", [5]),
        ("no_repeat_ngram_size", 2),
        ("bad_words_ids", [[5]]),
        ("stop_strings", "END"),
        ("typical_p", 0.9),
        ("num_beams", 4),
        ("max_new_tokens", 20),
        ("min_new_tokens", 2),
        ("forced_bos_token_id", 0),
        ("forced_eos_token_id", [1]),
    ],
)
def test_what_has_an_effect_is_found(key: str, value: Any) -> None:
    assert unread_keys({key: value, "temperature": 0.5, "eos_token_id": 0}) == [key]


@pytest.mark.parametrize(
    "generation",
    [
        {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": None},
        {"bad_words_ids": [], "sequence_bias": {}, "length_penalty": 1.0, "token_healing": False},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": 0, "max_length": 4096},
    ],
)
def test_what_has_none_is_not(generation: dict[str, Any]) -> None:
    assert unread_keys(generation) == []


def test_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake_model(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"suppress_tokens": [1], "num_beams": 4, "typical_p": 1.0}))
    with caplog.at_level(logging.WARNING):
        ModelFiles.open(str(tmp_path))
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "num_beams, suppress_tokens," in record.getMessage()
