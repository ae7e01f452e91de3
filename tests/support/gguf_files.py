"""Files of GGUF made of tiny checkpoints, by the library `gguf` and its own table of names."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[Any]

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write_gguf(
    folder: Path, path: Path, kind: str = "F32", *, pre: str = "gpt-2", extra: dict[str, Any] | None = None
) -> Path:
    """The checkpoint in `folder`, its matrices as `kind`. `extra`: more metadata, whole numbers and texts."""
    config = json.loads((folder / "config.json").read_text())
    architecture = _ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_shape(writer, config)
    add_byte_level(writer, folder, pre)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    _add_rope(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        _add_tensor(writer, theirs, _pairs_apart(name, tensor, config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])


def _add_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Llama 3's scaling as transformers computes it, written as llama.cpp's converter does: what divides the
    frequencies."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] != "llama3":
        return
    scaled = AutoConfig.for_model(**config)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    count = len(frequencies)
    plain = rope["rope_theta"] ** (-np.arange(count) / count)
    writer.add_tensor("rope_freqs.weight", (plain / frequencies.numpy()).astype(np.float32))


def add_byte_level(writer: gguf.GGUFWriter, folder: Path, pre: str) -> None:
    """tokenizer.json of a folder, whose added tokens are all special."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    vocab = tokenizer["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")


def _pairs_apart(name: str, tensor: Array, config: dict[str, Any]) -> Array:
    """llama.cpp's converter puts the two rows that Llama rotates together beside each other."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = next((part for part in heads if part in name), None)
    if config["model_type"] != "llama" or part is None:
        return tensor
    halves = tensor.reshape(config[heads[part]], 2, -1, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Array, kind: str) -> None:
    if tensor.ndim < 2:
        writer.add_tensor(name, tensor.astype(np.float32))
        return
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(tensor.astype(np.float32), stored), raw_dtype=stored)


def write_sentencepiece(path: Path, tokenizer: dict[str, Any]) -> Path:
    """A file without tensors: a tokenizer.json of SentencePiece's kind as tokens, scores and types."""
    vocab = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    made = {first + second: rank for rank, (first, second) in enumerate(tokenizer["model"]["merges"])}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    # single characters have no merge; theirs are the lowest
    writer.add_token_scores([-float(made.get(token, len(made))) for token in tokens])
    writer.add_token_types([_type_of(token, special) for token in tokens])
    writer.add_unk_token_id(vocab["<unk>"])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _type_of(token: str, special: set[str]) -> int:
    if token == "<unk>":
        return _UNKNOWN
    if token.startswith("<0x"):
        return _BYTE
    return _CONTROL if token in special else _NORMAL
