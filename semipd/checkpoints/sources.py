"""Which checkpoint tensor goes to which rows of which packed weight. No torch here."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from semipd.checkpoints.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint, and where its rows start in the packed weight `target`."""

    name: str
    shape: tuple[int, ...]
    target: str
    row: int = 0

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def checkpoint_sources(config: ModelConfig) -> Iterator[Source]:
    """Every tensor a checkpoint of `config` must hold, under transformers' names."""
    table = (config.vocab_size, config.hidden_size)
    yield Source("model.embed_tokens.weight", table, "embed")
    for idx in range(config.num_layers):
        for name, shape, target, row in _layer_sources(config):
            yield Source(f"model.layers.{idx}.{name}", shape, f"layers.{idx}.{target}", row)
    yield Source("model.norm.weight", (config.hidden_size,), "norm")
    if not config.tie_word_embeddings:
        yield Source("lm_head.weight", table, "lm_head")


def is_harmless(name: str, config: ModelConfig) -> bool:
    """Tensors some checkpoints carry that nothing reads: RoPE buffers, a second copy of tied embeddings."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _layer_sources(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], str, int]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "input_layernorm.weight", (hidden,), "input_norm", 0
    rows = (("q", q_width, 0), ("k", kv_width, q_width), ("v", kv_width, q_width + kv_width))
    for head, width, row in rows:
        yield f"self_attn.{head}_proj.weight", (width, hidden), "qkv", row
        if config.qkv_bias:
            yield f"self_attn.{head}_proj.bias", (width,), "qkv_bias", row
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,), "q_norm", 0
        yield "self_attn.k_norm.weight", (config.head_dim,), "k_norm", 0
    yield "self_attn.o_proj.weight", (hidden, q_width), "o", 0
    if config.o_bias:
        yield "self_attn.o_proj.bias", (hidden,), "o_bias", 0
    yield "post_attention_layernorm.weight", (hidden,), "mlp_norm", 0
    for name, row in (("gate", 0), ("up", inner)):
        yield f"mlp.{name}_proj.weight", (inner, hidden), "gate_up", row
        if config.mlp_bias:
            yield f"mlp.{name}_proj.bias", (inner,), "gate_up_bias", row
    yield "mlp.down_proj.weight", (hidden, inner), "down", 0
    if config.mlp_bias:
        yield "mlp.down_proj.bias", (hidden,), "down_bias", 0
