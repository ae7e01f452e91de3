"""Ops in plain torch, on any device: the meaning of each operation, and what tests run.

On a GPU they work but read every context at full width; the kernels' operations are what serves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from semipd.core.plan import blocks_for
from semipd.network.chunk_attention import attend_chunk
from semipd.network.ops import Heads
from semipd.network.rope import normed_and_rotated, rotation
from semipd.network.rows import NO_PLAN, ChunkPlan, ChunkRows, DecodeRows, PassSize, StepRows

_HAS_OUT_DTYPE = "dtype_out" in torch.ops.aten.mm.overloads()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """See Ops.linear; by cuBLAS on a GPU."""
    if out.dtype != x.dtype:
        if bias is None and multiplies_into(x, out.dtype):
            return torch.mm(x, weight.t(), out.dtype, out=out)
        return out.copy_(functional.linear(x, weight, bias))
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def multiplies_into(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch can multiply `x` straight into `dtype`: on a GPU, from two-byte numbers to float32. It
    takes one pass instead of three, and the sums are not rounded to two bytes on the way."""
    return x.is_cuda and x.dtype.itemsize == 2 and dtype == torch.float32 and _HAS_OUT_DTYPE


class TorchOps:
    """See ops.Ops."""

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> Tensor:
        return torch.index_select(table, 0, token_ids, out=out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        return out.copy_(functional.rms_norm(x, weight.shape, weight, eps))

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        return self.rms_norm(residual.add_(x), weight, eps, out)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        return linear(x, weight, bias, out)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.mul(functional.silu(gate), up, out=out)

    def rope_and_cache(
        self, qkv: Tensor, heads: Heads, qk_norm: Tensor | None, rows: StepRows, layer_kv: Tensor
    ) -> None:
        rotary = rotation(rows.positions, heads.frequencies, heads.rope_scale)
        qk, kv = heads.split(qkv)
        qk.copy_(normed_and_rotated(qk, qk_norm, heads.eps, rotary))
        block_size = layer_kv.shape[3]
        layer_kv[:, rows.slots // block_size, :, rows.slots % block_size] = kv

    def decode_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, rows: DecodeRows, num_units: int, out: Tensor
    ) -> None:
        context = layer_kv[:, rows.tables].transpose(3, 4).flatten(2, 3)  # [2, D, tokens, kv heads, head_dim]
        valid = torch.arange(context.shape[2], device=qkv.device) < rows.kv_lens[:, None]
        keys, values = context.where(valid[None, :, :, None, None], 0)
        grouped = qkv[:, : heads.num_q].reshape(len(qkv), heads.num_kv, -1, heads.head_dim)
        scores = torch.einsum("dhgi,dthi->dhgt", grouped, keys).float().mul_(heads.attention_scale)
        scores.masked_fill_(~valid[:, None, None, :], -torch.inf)
        weights = scores.softmax(dim=-1).to(qkv.dtype)
        out.copy_(torch.einsum("dhgt,dthi->dhgi", weights, values).reshape(out.shape))

    def decode_workspace(self, max_rows: int, heads: Heads, num_units: int) -> tuple[Tensor, ...]:
        return ()

    def plan_chunks(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        heads: Heads,
        num_units: int,
        padded: PassSize | None = None,
    ) -> ChunkPlan:
        assert padded is None, "attention here reads lengths on the host"
        return NO_PLAN

    def prefill_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, chunks: ChunkRows, num_units: int, out: Tensor
    ) -> None:
        q, start = qkv[:, : heads.num_q], 0
        for idx, (length, kv_len) in enumerate(zip(chunks.host_query_lens, chunks.host_kv_lens, strict=True)):
            blocks = chunks.tables[idx, : blocks_for(kv_len, layer_kv.shape[3])]
            keys, values = layer_kv.index_select(1, blocks).transpose(1, 2).flatten(2, 3)[:, :, :kv_len]
            own = slice(start, start + length)
            out[own] = attend_chunk(q[own], keys, values, heads.attention_scale)
            start += length
