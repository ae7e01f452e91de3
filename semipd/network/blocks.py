"""The parts of a layer. Fields are parameters, under the names of network.params."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TypeVar

from torch import Tensor

from semipd.network.activations import Activations
from semipd.network.ops import Heads, Ops
from semipd.network.params import layer_prefix
from semipd.network.rows import StepRows


@dataclass(frozen=True, slots=True)
class GqaAttention:
    """Grouped-query attention with RoPE (arXiv 2305.13245, 2104.09864)."""

    input_norm: Tensor
    qkv: Tensor
    o: Tensor
    qkv_bias: Tensor | None = None
    qk_norm: Tensor | None = None
    o_bias: Tensor | None = None

    def attend(
        self, ops: Ops, heads: Heads, rows: StepRows, memory: Activations, layer_kv: Tensor, num_units: int
    ) -> None:
        """From `normed` to `attended`; writes the rows' KV."""
        flat = ops.linear(memory.normed, self.qkv, self.qkv_bias, memory.qkv)
        qkv = flat.view(rows.num_rows, -1, heads.head_dim)
        ops.rope_and_cache(qkv, heads, self.qk_norm, rows, layer_kv)
        out = memory.attended.view(rows.num_rows, heads.num_q, heads.head_dim)
        split = rows.num_decode
        if rows.decode is not None:
            ops.decode_attention(qkv[:split], heads, layer_kv, rows.decode, num_units, out[:split])
        if rows.chunks is not None:
            ops.prefill_attention(qkv[split:], heads, layer_kv, rows.chunks, num_units, out[split:])

    def project(self, ops: Ops, memory: Activations) -> None:
        """From `attended` to `branch`."""
        memory.branch = ops.linear(memory.attended, self.o, self.o_bias, memory.branch)


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """SwiGLU (arXiv 2002.05202)."""

    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def forward(self, ops: Ops, memory: Activations) -> None:
        """From `normed` to `branch`."""
        gate_up = ops.linear(memory.normed, self.gate_up, self.gate_up_bias, memory.gate_up)
        activated = ops.silu_mul(gate_up, memory.activated)
        memory.branch = ops.linear(activated, self.down, self.down_bias, memory.branch)


Block = TypeVar("Block", GqaAttention, DenseMlp)


def bound(block: type[Block], weights: Mapping[str, Tensor], layer_idx: int) -> Block:
    """The layer's own block over views of `weights`."""
    prefix = layer_prefix(layer_idx)
    names = {field.name: prefix + field.name for field in fields(block)}
    needed = {field.name for field in fields(block) if field.default is MISSING}
    return block(**{own: weights[name] for own, name in names.items() if own in needed or name in weights})
