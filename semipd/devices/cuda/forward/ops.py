"""The operations a forward pass is made of: what the executor asks of whoever computes.

Every operation writes into memory it is given, allocates nothing that outlives it, and never waits for the
device, so that it can be captured into a CUDA graph. `num_sms` is the lane's share: grids are sized by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from semipd.devices.cuda.rows.rows import ChunkPlan, ChunkRows, DecodeRows


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of `qkv` is divided, and what happens to its heads before attention.

    Attributes:
        frequencies: float32 [head_dim / 2], angle per position; `rope_scale` multiplies cos and sin.
        eps: of the norms of queries and keys, where a model has them.
    """

    num_q: int
    num_kv: int
    head_dim: int
    frequencies: Tensor
    rope_scale: float
    eps: float

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)


class Ops(Protocol):
    """T rows of width H, in the weights' dtype unless said otherwise. `layer_kv` is one layer's pool,
    [2, num_blocks, kv heads, 16, head_dim]."""

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> None:
        """`out` [T, H]: rows of `table` [vocab, H] named by `token_ids` int32 [T]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """arXiv 1910.07467, float32 inside."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """`residual` += `x`, then `out` = rms_norm(residual)."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """`out` [T, N] = x [T, K] @ weight [N, K]^T + bias; `out` may be float32."""

    def rope_and_cache(
        self,
        qkv: Tensor,
        heads: Heads,
        qk_norm: Tensor | None,
        positions: Tensor,
        slots: Tensor,
        layer_kv: Tensor,
    ) -> None:
        """In `qkv` [T, (num_q + 2 num_kv) head_dim], queries and keys are normed per head (by `qk_norm`
        float32 [num_q + num_kv, head_dim], if there is one) and rotated; keys and values go to `slots` of the
        pool, queries stay in `qkv`."""

    def decode_attention(
        self, q: Tensor, layer_kv: Tensor, rows: DecodeRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        """`out` [D, num_q, head_dim]: each row of `q` attends to its sequence's first kv_lens tokens."""

    def plan_chunks(
        self, query_lens: Sequence[int], kv_lens: Sequence[int], heads: Heads, num_sms: int
    ) -> ChunkPlan:
        """On the host, once a step: how `prefill_attention` will cut these chunks on about so many SMs."""

    def prefill_attention(
        self, q: Tensor, layer_kv: Tensor, chunks: ChunkRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        """`out` [T, num_q, head_dim]: causal; the chunks' KV is already in the pool."""

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        """`out` [T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]."""
