"""Ops by the kernels of semipd_kernels, matrix products by cuBLAS. On CPU tensors their references run."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from semipd_kernels.decode_attention import decode_attention
from semipd_kernels.embedding import embedding
from semipd_kernels.prefill_attention import PrefillPlan, plan_prefill, prefill_attention
from semipd_kernels.rms_norm import add_rms_norm, rms_norm
from semipd_kernels.rope_write import rope_write
from semipd_kernels.silu_mul import silu_mul
from torch import Tensor

from semipd.devices.cuda.forward.ops import Heads
from semipd.devices.cuda.forward.torch_ops import linear
from semipd.devices.cuda.rows.rows import ChunkPlan, ChunkRows, DecodeRows


class KernelOps:
    """See ops.Ops. `dtype`: of weights and KV; `arch`: compute capability, e.g. 90."""

    def __init__(self, dtype: torch.dtype, arch: int) -> None:
        self._dtype = dtype
        self._arch = arch

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> None:
        embedding(token_ids, table, out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        rms_norm(x, weight, eps, out)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        add_rms_norm(x, residual, weight, eps, out)

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
        by_head = qkv.view(qkv.shape[0], -1, heads.head_dim)
        rope_write(
            by_head, positions, heads.frequencies, heads.rope_scale, slots, layer_kv, qk_norm, heads.eps
        )

    def decode_attention(
        self, q: Tensor, layer_kv: Tensor, rows: DecodeRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        decode_attention(q, layer_kv, rows.tables, rows.kv_lens, num_sms=num_sms, scale=scale, out=out)

    def plan_chunks(
        self, query_lens: Sequence[int], kv_lens: Sequence[int], heads: Heads, num_sms: int
    ) -> ChunkPlan:
        plan = plan_prefill(
            query_lens,
            kv_lens,
            num_heads=heads.num_q,
            num_kv_heads=heads.num_kv,
            head_dim=heads.head_dim,
            dtype=self._dtype,
            num_sms=num_sms,
            arch=self._arch,
        )
        return ChunkPlan(plan.items.numpy().reshape(-1), plan)

    def prefill_attention(
        self, q: Tensor, layer_kv: Tensor, chunks: ChunkRows, scale: float, num_sms: int, out: Tensor
    ) -> None:
        plan = chunks.plan.details
        assert isinstance(plan, PrefillPlan), plan
        plan = replace(plan, items=chunks.work.view(-1, 2))
        starts, lens = chunks.query_starts, chunks.kv_lens
        prefill_attention(q, layer_kv, chunks.tables, starts, lens, out, plan, num_sms=num_sms, scale=scale)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> None:
        silu_mul(gate_up, out)
