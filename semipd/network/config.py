"""The facts about a model that layouts, passes and sizes follow from. No torch here."""

from dataclasses import dataclass
from typing import Literal

DTypeName = Literal["float32", "bfloat16", "float16"]

ITEM_BYTES: dict[DTypeName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Attributes beyond `kind` and `theta` matter only to the kinds named.

    Attributes:
        factor: linear, llama3, yarn: how much longer the context becomes.
        original_context_tokens: llama3, yarn: context of the pre-training.
        low_freq_factor, high_freq_factor: llama3.
        beta_fast, beta_slow, truncate: yarn: the ramp between extrapolated and interpolated frequencies.
        attention_factor, mscale, mscale_all_dim: yarn: scale of cos and sin; None: derived (see rope.py).
    """

    kind: RopeKind
    theta: float
    factor: float = 1.0
    original_context_tokens: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def context_tokens(self, max_position_embeddings: int) -> int:
        """Longest context. Checkpoints with yarn state either the original or the extended length."""
        if self.kind != "yarn":
            return max_position_embeddings
        return max(max_position_embeddings, int(self.factor * self.original_context_tokens))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Facts about a dense decoder.

    Attributes:
        family: transformers' model_type.
        max_position_embeddings: longest context in tokens; with yarn, what the scaling extends it to.
        qkv_bias, o_bias, mlp_bias: which projections have a bias.
        qk_norm: RMSNorm over each query and key head before RoPE (Qwen3).
        dtype: of the checkpoint.
        interleaved_rope: the checkpoint rotates neighbouring dimensions (0, 1), (2, 3), ... of a head.
        is_quantized: its numbers have fewer than 16 bits, and are dequantised when they are loaded.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: DTypeName
    interleaved_rope: bool = False
    is_quantized: bool = False

    @property
    def q_width(self) -> int:
        """Elements of one token's queries, all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys in one layer; its values have as many."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        return self.q_width + 2 * self.kv_width
