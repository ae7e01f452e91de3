"""Tiny random checkpoints made by transformers, with a tokenizer, so that whole daemons can load them.

    folder = tiny_checkpoint(tmp_path_factory, "qwen3", tie_word_embeddings=True)

makes one per session and set of options. transformers is imported on first use: it takes seconds.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_tokenizers
from torch import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "seed_oss", "ernie4_5")
CONTEXT_TOKENS = 512
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

_FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": None, "head_dim": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "seed_oss": {"head_dim": 24, "attention_out_bias": True},
    "ernie4_5": {"head_dim": 32, "use_bias": True},
}
_built: dict[tuple[Path, str], Path] = {}


def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, family: str, **options: Any) -> Path:
    """Folder of the session's checkpoint with these options of `save_tiny_checkpoint`. Do not write to it."""
    base = tmp_path_factory.getbasetemp()
    key = (base, f"{family} {sorted(options.items(), key=lambda item: item[0])}")
    if key not in _built:
        _built[key] = save_tiny_checkpoint(tmp_path_factory.mktemp(family), family, **options)
    return _built[key]


def save_tiny_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """config.json, safetensors, generation_config.json and tokenizer.json of a random model of 3 layers.

    `overrides` are keys of the family's configuration; `max_shard_size` such as "100KB" makes several files.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizers.byte_level()
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": tokenizer.token_to_id("</s>"),
    }
    config = AutoConfig.for_model(family, **(settings | _FAMILY_OPTIONS[family] | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomize(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizers.save(tokenizer, folder)
    return folder


def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Every parameter matters: transformers starts biases at zero and norms at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 2 and "embed" not in name:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.3 * noise)


@cache
def _reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def reference_logits(folder: Path, token_ids: list[int]) -> Tensor:
    """Logits [T, vocab] float32 of transformers' eager float32 model, in one pass."""
    with torch.no_grad():
        logits: Tensor = _reference(folder)(torch.tensor([token_ids])).logits[0]
    return logits
