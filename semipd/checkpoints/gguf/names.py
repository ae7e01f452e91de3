"""Names of tensors: those of GGUF, and those of Hugging Face's checkpoints for the same. No torch here.

The names are those of llama.cpp's converter (gguf-py/gguf/constants.py).
"""

import re
from collections.abc import Iterable

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_WHOLE_TENSOR = re.compile(r"(\w+)\.(weight|bias)")

ROPE_FREQS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: a part of the configuration."""


def by_their_names(names: Iterable[str]) -> dict[str, str]:
    """Hugging Face's name of each tensor to that of GGUF. Those without one keep theirs: no model has it."""
    return {_theirs(name): name for name in names if name != ROPE_FREQS}


def _theirs(name: str) -> str:
    if (match := _LAYER_TENSOR.fullmatch(name)) and match[2] in _OF_LAYER:
        return f"model.layers.{match[1]}.{_OF_LAYER[match[2]]}.{match[3]}"
    if (match := _WHOLE_TENSOR.fullmatch(name)) and match[1] in _WHOLE:
        return f"{_WHOLE[match[1]]}.{match[2]}"
    return name
