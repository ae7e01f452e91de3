"""A model folder for each device: without weights for the fake one, a small random fp32 Llama for the CPU."""

import json
from pathlib import Path

from benchlib.checkpoint import save_tokenizer

from semipd.core.errors import SemipdError

VOCAB_SIZE = 500
CONTEXT_TOKENS = 1024
_HIDDEN = 64


def save_weightless(folder: Path) -> Path:
    """All that the fake device and the daemon read."""
    folder.mkdir(parents=True)
    facts = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT_TOKENS}
    (folder / "config.json").write_text(json.dumps(facts))
    save_tokenizer(folder, VOCAB_SIZE, CONTEXT_TOKENS)
    return folder


def save_small_llama(folder: Path, seed: int) -> Path:
    """Weights so large that greedy text does not run in circles. No token ends a text.
    Raises SemipdError: `packages_missing`."""
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise SemipdError(
            "packages_missing",
            f"The device cpu needs a checkpoint and a judge, made with torch and transformers ({error}).",
            "Install them: pip install torch transformers, or use --device fake.",
        ) from error
    config = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=_HIDDEN,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=2 * _HIDDEN**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, VOCAB_SIZE, CONTEXT_TOKENS)
    return folder
