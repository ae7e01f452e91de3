"""The dense decoder of Llama, Mistral, Qwen2 and Qwen3, in plain torch on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from semipd.devices.cpu.math.attention import StepAttention
from semipd.devices.cpu.math.packing import linear
from semipd.network.batch import BatchInput
from semipd.network.config import ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.params import layer_prefix
from semipd.network.rope import inverse_frequencies, rotate, rotation


@dataclass(frozen=True, slots=True)
class _Layer:
    """Views of one layer's weights, under the names of network.params."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class DenseDecoder:
    """Pre-norm transformer: RMSNorm, grouped-query attention with RoPE, SwiGLU.

    Matmuls run in the weights' dtype; norms, RoPE and softmax in float32.

    Args:
        weights: by the names of network.params, on one device and of one dtype; matrices may be packed.
        kv_pool: of a shape of KvLayout, same device and dtype; slots that hold no token may contain anything.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], kv_pool: Tensor) -> None:
        assert kv_pool.shape == KvLayout.of(config).pool_shape(kv_pool.shape[2]), kv_pool.shape
        self._config = config
        self._kv_pool = kv_pool
        self._embed = weights["embed"]
        self._norm = weights["norm"]
        self._lm_head = weights.get("lm_head", self._embed)
        self._layers = [_layer(weights, idx) for idx in range(config.num_layers)]
        frequencies, self._rope_scale = inverse_frequencies(config.rope, config.head_dim)
        self._frequencies = frequencies.to(kv_pool.device)

    @torch.inference_mode()
    def forward(self, batch: BatchInput) -> Tensor:
        """Logits [R, vocab_size] float32 of `batch.logit_rows`. Writes the KV of every row into the pool."""
        attention = StepAttention(batch, self._kv_pool)
        rotary = rotation(batch.positions, self._frequencies, self._rope_scale)
        hidden = functional.embedding(batch.token_ids, self._embed)
        for idx, layer in enumerate(self._layers):
            attended = attention(idx, *self._project(layer, hidden, rotary))
            if idx == len(self._layers) - 1:
                _note_unsound(attended, batch)
                # Past the last KV only the rows whose logits are wanted matter.
                attended, hidden = attended[batch.logit_rows], hidden[batch.logit_rows]
            hidden.add_(linear(attended, layer.o, layer.o_bias))
            hidden.add_(self._mlp(layer, hidden))
        return linear(self._rms_norm(hidden, self._norm), self._lm_head, None).float()

    def _project(self, layer: _Layer, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotated queries [T, heads, head_dim], and keys and values [T, 2, kv heads, head_dim]."""
        config = self._config
        num_q, num_kv, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        normed = self._rms_norm(hidden, layer.input_norm)
        qkv = linear(normed, layer.qkv, layer.qkv_bias).view(-1, num_q + 2 * num_kv, head_dim)
        qk = qkv[:, : num_q + num_kv]
        wide = qk.float()
        if layer.qk_norm is not None:
            wide = functional.rms_norm(wide, (head_dim,), eps=config.rms_norm_eps) * layer.qk_norm
        qk.copy_(rotate(wide, *rotary))
        return qkv[:, :num_q], qkv[:, num_q:].view(-1, 2, num_kv, head_dim)

    def _mlp(self, layer: _Layer, hidden: Tensor) -> Tensor:
        normed = self._rms_norm(hidden, layer.mlp_norm)
        gate, up = linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return linear(functional.silu(gate).mul_(up), layer.down, layer.down_bias)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """arXiv 1910.07467; torch accumulates 16-bit inputs in float32."""
        return functional.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)


def _note_unsound(attended: Tensor, batch: BatchInput) -> None:
    """What was not finite in an earlier layer has made its row's values in the last one NaN."""
    if batch.unsound is not None:
        batch.unsound.copy_(attended.sum(dim=1, dtype=torch.float32).isfinite().logical_not_())


def _layer(weights: dict[str, Tensor], idx: int) -> _Layer:
    names = [(name, layer_prefix(idx) + name) for name in _Layer.__slots__]
    return _Layer(**{name: weights.get(full) for name, full in names})  # type: ignore[arg-type]
