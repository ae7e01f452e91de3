"""The dense decoder as a sequence of launches over memory reserved at start-up: a pass can be cut between any
two layers, captured into a graph, and run on any lane."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semipd.devices.cuda.forward.ops import Heads, Ops
from semipd.devices.cuda.rows.rows import ChunkPlan, StepRows
from semipd.network.config import ModelConfig
from semipd.network.params import layer_prefix
from semipd.network.rope import inverse_frequencies


@dataclass(frozen=True, slots=True)
class _Layer:
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

    @classmethod
    def of(cls, weights: dict[str, Tensor], idx: int) -> "_Layer":
        names = [(name, layer_prefix(idx) + name) for name in cls.__slots__]
        return cls(**{name: weights.get(full) for name, full in names})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Activations:
    """Memory of one lane for passes of up to `max_rows` rows; `first` gives views of the leading rows.

    `hidden` is the residual stream, `branch` what the last sublayer adds to it, not yet added.
    """

    hidden: Tensor
    normed: Tensor
    branch: Tensor
    qkv: Tensor
    attended: Tensor
    gate_up: Tensor
    activated: Tensor

    @classmethod
    def reserve(cls, config: ModelConfig, max_rows: int, like: Tensor) -> "Activations":
        q_width = config.num_heads * config.head_dim
        qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        widths = (hidden, hidden, hidden, qkv_width, q_width, 2 * inner, inner)
        return cls(*(like.new_empty(max_rows, width) for width in widths))

    def first(self, num_rows: int) -> "Activations":
        return Activations(*(getattr(self, name)[:num_rows] for name in self.__slots__))

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.__slots__)


class Transformer:
    """One pass: `embed`, `layers` over all indices in order, `finish`, then `logits` of the rows wanted.

    Args:
        weights: by the names of network.params, on the device.
        kv_pool: of a shape of KvLayout, on the device.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], kv_pool: Tensor, ops: Ops) -> None:
        self.num_layers = config.num_layers
        self._ops = ops
        self._eps = config.rms_norm_eps
        self._pool = kv_pool
        self._embed = weights["embed"]
        self._norm = weights["norm"]
        self._lm_head = weights.get("lm_head", self._embed)
        self._layers = [_Layer.of(weights, idx) for idx in range(config.num_layers)]
        frequencies, rope_scale = inverse_frequencies(config.rope, config.head_dim)
        self._heads = Heads(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            frequencies.to(kv_pool.device),
            rope_scale,
            config.rms_norm_eps,
        )

    def plan_chunks(self, query_lens: Sequence[int], kv_lens: Sequence[int], num_sms: int) -> ChunkPlan:
        """See Ops.plan_chunks."""
        return self._ops.plan_chunks(query_lens, kv_lens, self._heads, num_sms)

    def embed(self, rows: StepRows, memory: Activations) -> None:
        self._ops.embed(rows.token_ids, self._embed, memory.hidden)

    def layers(self, rows: StepRows, memory: Activations, indices: Iterable[int], num_sms: int) -> None:
        """The last layer stops after attention: `finish` does the rest, for the rows that matter."""
        for idx in indices:
            layer = self._layers[idx]
            if idx == 0:
                self._ops.rms_norm(memory.hidden, layer.input_norm, self._eps, memory.normed)
            else:
                self._add_norm(memory, layer.input_norm)
            self._attend(idx, rows, memory, num_sms)
            if idx < self.num_layers - 1:
                self._mlp(layer, memory)

    def finish(self, memory: Activations, wanted: Tensor | None) -> Tensor:
        """Final hidden states [R, H] of the rows `wanted` (int32 [R]; None: all), in their order; valid until
        the lane's next pass."""
        if wanted is not None:
            # Their own tensors: gathering in place would overwrite rows still to be read.
            hidden, attended = memory.hidden.index_select(0, wanted), memory.attended.index_select(0, wanted)
            memory = memory.first(wanted.shape[0])
            memory.hidden.copy_(hidden)
            memory.attended.copy_(attended)
        self._mlp(self._layers[-1], memory)
        self._add_norm(memory, self._norm)
        return memory.normed

    def logits(self, final: Tensor, out: Tensor) -> None:
        """`out` [R, vocab] float32."""
        self._ops.linear(final, self._lm_head, None, out)

    def _attend(self, idx: int, rows: StepRows, memory: Activations, num_sms: int) -> None:
        layer, heads, ops, pool = self._layers[idx], self._heads, self._ops, self._pool[idx]
        ops.linear(memory.normed, layer.qkv, layer.qkv_bias, memory.qkv)
        ops.rope_and_cache(memory.qkv, heads, layer.qk_norm, rows.positions, rows.slots, pool)
        q = memory.qkv.view(rows.num_rows, -1, heads.head_dim)[:, : heads.num_q]
        out = memory.attended.view(rows.num_rows, heads.num_q, heads.head_dim)
        split, scale = rows.num_decode, heads.attention_scale
        if rows.decode is not None:
            ops.decode_attention(q[:split], pool, rows.decode, scale, num_sms, out[:split])
        if rows.chunks is not None:
            ops.prefill_attention(q[split:], pool, rows.chunks, scale, num_sms, out[split:])

    def _mlp(self, layer: _Layer, memory: Activations) -> None:
        """From attended values to `branch`, what the MLP adds."""
        self._ops.linear(memory.attended, layer.o, layer.o_bias, memory.branch)
        self._add_norm(memory, layer.mlp_norm)
        self._ops.linear(memory.normed, layer.gate_up, layer.gate_up_bias, memory.gate_up)
        self._ops.silu_mul(memory.gate_up, memory.activated)
        self._ops.linear(memory.activated, layer.down, layer.down_bias, memory.branch)

    def _add_norm(self, memory: Activations, weight: Tensor) -> None:
        self._ops.add_rms_norm(memory.branch, memory.hidden, weight, self._eps, memory.normed)


def lm_head_rows(max_num_seqs: int) -> int:
    """Rows of a lane's logits: every sequence may sample in one step; prompt rows come in blocks of these."""
    return max(max_num_seqs, PROMPT_ROWS_AT_ONCE)


PROMPT_ROWS_AT_ONCE = 64
"""Bounds the logits of a prompt whose log-probabilities are wanted: a chunk can have thousands of rows."""


def reserve_logits(max_num_seqs: int, vocab_size: int, device: torch.device) -> Tensor:
    return torch.empty(lm_head_rows(max_num_seqs), vocab_size, dtype=torch.float32, device=device)
