"""Ops in plain torch, on any device: the meaning of each operation, and what tests run.

On a GPU they work but read every context at full width; `kernel_ops` is what serves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semipd.core.plan import BLOCK_SIZE
from semipd.devices.cuda.forward.ops import Heads
from semipd.devices.cuda.rows.rows import ChunkPlan, ChunkRows, DecodeRows
from semipd.network.chunk_attention import attend_chunk
from semipd.network.rope import rotate, rotation


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """See Ops.linear; cuBLAS on a GPU."""
    if out.dtype != x.dtype:
        out.copy_(functional.linear(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


class TorchOps:
    """See ops.Ops."""

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> None:
        torch.index_select(table, 0, token_ids, out=out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        out.copy_(functional.rms_norm(x, weight.shape, weight, eps))

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        residual.add_(x)
        self.rms_norm(residual, weight, eps, out)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        linear(x, weight, bias, out)

    def rope_and_cache(
        self,
        qkv: Tensor,
        heads: Heads,
        qk_norm: Tensor | None,
        positions: Tensor,
        slots: Tensor,
        layer_kv: Tensor,
    ) -> None:
        num_q, num_kv = heads.num_q, heads.num_kv
        by_head = qkv.view(-1, num_q + 2 * num_kv, heads.head_dim)
        rotary = rotation(positions, heads.frequencies, heads.rope_scale)
        qk = by_head[:, : num_q + num_kv]
        wide = qk.float()
        if qk_norm is not None:
            wide = functional.rms_norm(wide, (heads.head_dim,), eps=heads.eps) * qk_norm
        qk.copy_(rotate(wide, *rotary))
        kv = by_head[:, num_q:].view(-1, 2, num_kv, heads.head_dim)
        layer_kv[:, slots // BLOCK_SIZE, :, slots % BLOCK_SIZE] = kv

    def decode_attention(
        self, q: Tensor, layer_kv: Tensor, rows: DecodeRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        num_rows, num_q, head_dim = q.shape
        context = layer_kv[:, rows.tables].transpose(3, 4).flatten(2, 3)  # [2, D, tokens, kv heads, head_dim]
        valid = torch.arange(context.shape[2], device=q.device) < rows.kv_lens[:, None]
        keys, values = context.where(valid[None, :, :, None, None], 0)
        grouped = q.reshape(num_rows, keys.shape[2], -1, head_dim)
        scores = torch.einsum("dhgi,dthi->dhgt", grouped, keys).float().mul_(scale)
        scores.masked_fill_(~valid[:, None, None, :], -torch.inf)
        weights = scores.softmax(dim=-1).to(q.dtype)
        out.copy_(torch.einsum("dhgt,dthi->dhgi", weights, values).reshape(num_rows, num_q, head_dim))

    def plan_chunks(
        self, query_lens: Sequence[int], kv_lens: Sequence[int], heads: Heads, num_sms: int
    ) -> ChunkPlan:
        return ChunkPlan(np.empty(0, dtype=np.int32), None)

    def prefill_attention(
        self, q: Tensor, layer_kv: Tensor, chunks: ChunkRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        start = 0
        for idx, (length, kv_len) in enumerate(zip(chunks.host_query_lens, chunks.host_kv_lens, strict=True)):
            blocks = chunks.tables[idx, : -(-kv_len // BLOCK_SIZE)]
            context = layer_kv.index_select(1, blocks).transpose(1, 2).flatten(2, 3)[:, :, :kv_len]
            out[start : start + length] = attend_chunk(
                q[start : start + length], context[0], context[1], scale
            )
            start += length

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), up, out=out)
