"""The operations a pass is made of: what the network asks of whoever computes.

An operation returns its result. It may put it into `out`, memory reserved for it, which the CUDA device's
operations always do: they allocate nothing that outlives them and never wait for the device, so that they can
be captured into a CUDA graph. `num_units` is the lane's share of the device: grids are sized by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from semipd.network.config import ModelConfig
from semipd.network.rope import inverse_frequencies
from semipd.network.rows import ChunkPlan, ChunkRows, DecodeRows, PassSize, StepRows


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of queries, keys and values is divided, and what happens to its heads before attention.

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

    @classmethod
    def of(cls, config: ModelConfig, like: Tensor) -> "Heads":
        frequencies, scale = inverse_frequencies(config.rope, config.head_dim)
        return cls(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            frequencies.to(like.device),
            scale,
            config.rms_norm_eps,
        )

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Views of [T, num_q + 2 num_kv, head_dim]: queries and keys [T, num_q + num_kv, head_dim]; keys and
        values [T, 2, num_kv, head_dim]."""
        kv = qkv[:, self.num_q :].view(-1, 2, self.num_kv, self.head_dim)
        return qkv[:, : self.num_q + self.num_kv], kv

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)


class Ops(Protocol):
    """T rows of width H, in the weights' dtype unless said otherwise.

    `qkv` is [T, num_q + 2 num_kv, head_dim]: queries, keys, values. `layer_kv` is one layer's pool, [2,
    num_blocks, num_kv, 16, head_dim]: keys, values.
    """

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> Tensor:
        """[T, H]: rows of `table` [vocab, H] named by `token_ids` [T]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        """arXiv 1910.07467, float32 inside."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        """`residual` += `x`; returns rms_norm(residual)."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """[T, N] = x [T, K] @ weight [N, K]^T + bias, in the dtype of `out`, which may be float32."""

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> Tensor:
        """[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]. May overwrite `gate_up`."""

    def rope_and_cache(
        self, qkv: Tensor, heads: Heads, qk_norm: Tensor | None, rows: StepRows, layer_kv: Tensor
    ) -> None:
        """In `qkv` queries and keys are normed per head (by `qk_norm` float32 [num_q + num_kv, head_dim], if
        there is one) and rotated; keys and values go to the rows' slots of the pool."""

    def decode_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, rows: DecodeRows, num_units: int, out: Tensor
    ) -> None:
        """`out` [D, num_q, head_dim]: each query attends to its sequence's first kv_lens tokens, all of which
        are in the pool."""

    def decode_workspace(self, max_rows: int, heads: Heads, num_units: int) -> tuple[Tensor, ...]:
        """Memory for `decode_attention` of at most so many rows on at most so many units. Each lane has its
        own: passes that may overlap cannot share it."""

    def plan_chunks(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        heads: Heads,
        num_units: int,
        padded: PassSize | None = None,
    ) -> ChunkPlan:
        """On the host, once a step: how `prefill_attention` will cut these chunks on about so many units.

        `padded`: so that a pass captured for this size serves the step. All plans of one size have work of
        one length and differ in nothing that a launch needs to know. Only where attention reads all about its
        chunks on the device; who does not asserts that it is None.
        """

    def prefill_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, chunks: ChunkRows, num_units: int, out: Tensor
    ) -> None:
        """`out` [T, num_q, head_dim]: causal; the chunks' KV is already in the pool."""
