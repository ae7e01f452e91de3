"""The model families: what an architecture's config.json leaves unsaid. A family is a row. No torch here."""

from dataclasses import dataclass
from typing import Literal

from semipd.checkpoints.fields import Fields
from semipd.checkpoints.rope_config import DEFAULT_THETA


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """A key of config.json that says yes or no, and what its absence says."""

    name: str
    default: bool = False


Flag = bool | ConfigKey
"""The family's answer, or the key that gives it."""

Window = Literal["no layer", "every layer", "use_sliding_window"]


@dataclass(frozen=True, slots=True)
class Family:
    """A dense decoder: RMSNorm before each block, grouped-query attention with RoPE, SwiGLU.

    Attributes:
        name: model_type.
        qkv_bias, o_bias, mlp_bias, qk_norm, interleaved_rope: see ModelConfig.
        tied: whether the head is the embedding table.
        head_dim: when the file does not say; None: hidden size / heads.
        theta, rms_norm_eps: when the file does not say.
        window: which layers apply `sliding_window`, when the file has no layer_types.
    """

    name: str
    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    qk_norm: bool = False
    interleaved_rope: bool = False
    tied: Flag = ConfigKey("tie_word_embeddings")
    head_dim: int | None = None
    theta: float = DEFAULT_THETA
    rms_norm_eps: float = 1e-6
    window: Window = "no layer"

    def keys(self) -> frozenset[str]:
        """Of config.json, that the family reads beyond what all do."""
        flags = (self.qkv_bias, self.o_bias, self.mlp_bias, self.tied)
        return frozenset(flag.name for flag in flags if isinstance(flag, ConfigKey))


def answer(flag: Flag, fields: Fields) -> bool:
    return fields.flag(flag.name, flag.default) if isinstance(flag, ConfigKey) else flag


_ATTENTION_BIAS = ConfigKey("attention_bias")

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", _ATTENTION_BIAS, _ATTENTION_BIAS, ConfigKey("mlp_bias")),
    "MistralForCausalLM": Family("mistral", window="every layer"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, window="use_sliding_window"),
    "Qwen3ForCausalLM": Family(
        "qwen3", _ATTENTION_BIAS, _ATTENTION_BIAS, qk_norm=True, head_dim=128, window="use_sliding_window"
    ),
    "SeedOssForCausalLM": Family(
        "seed_oss",
        ConfigKey("attention_bias", True),
        ConfigKey("attention_out_bias"),
        ConfigKey("mlp_bias"),
        head_dim=128,
    ),
    "Ernie4_5ForCausalLM": Family(
        "ernie4_5",
        ConfigKey("use_bias"),
        ConfigKey("use_bias"),
        ConfigKey("use_bias"),
        interleaved_rope=True,
        tied=ConfigKey("tie_word_embeddings", True),
        head_dim=128,
        theta=500_000.0,
        rms_norm_eps=1e-5,
    ),
}
"""By the names in `architectures`. Keys and defaults are those of transformers' configurations."""
