"""A random Llama with a tokenizer of one token per word, which any server of Hugging Face models can load."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from semipd.core.errors import SemipdError


@dataclass(frozen=True, slots=True)
class LlamaShape:
    layers: int = 8
    hidden: int = 512
    intermediate: int = 1376
    heads: int = 8
    kv_heads: int = 4
    vocab_size: int = 32_000
    context_tokens: int = 2048


def word(token_id: int) -> str:
    """The text of one token; words are separated by spaces."""
    return f"w{token_id}"


def text_of(token_ids: list[int]) -> str:
    """A text that is exactly these tokens."""
    return " ".join(map(word, token_ids))


def save_checkpoint(folder: Path, shape: LlamaShape, seed: int = 0) -> None:
    """config.json, bfloat16 safetensors, tokenizer. It has no end-of-text token, so that every server
    generates as many tokens as asked. Raises SemipdError: `packages_missing`."""
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise SemipdError(
            "packages_missing",
            f"Making the checkpoint needs torch and transformers ({error}).",
            "Install them: pip install torch transformers.",
        ) from error
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.context_tokens,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    # by parts: transformers' decorated `to` has no usable type
    model = LlamaForCausalLM(config)
    model.bfloat16()
    model.save_pretrained(folder)
    save_tokenizer(folder, shape.vocab_size, shape.context_tokens)
    (folder / "shape.json").write_text(json.dumps(asdict(shape) | {"seed": seed}) + "\n")


def save_tokenizer(folder: Path, vocab_size: int, context_tokens: int) -> None:
    """One token per word, see `word`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(vocab_size)}, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_tokens}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"clean_up_tokenization_spaces": False})
    )


def ensure_checkpoint(folder: Path, shape: LlamaShape, seed: int = 0) -> None:
    """Make it unless the folder holds this very one. Raises SemipdError: `other_checkpoint`."""
    try:
        found = json.loads((folder / "shape.json").read_text())
    except (OSError, ValueError):
        found = None
    if found == asdict(shape) | {"seed": seed}:
        return
    if folder.exists() and any(folder.iterdir()):
        raise SemipdError(
            "other_checkpoint", f"{folder} holds something else.", "Name a folder that is new or empty."
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, shape, seed)
