"""Ops by the kernels of semipd_kernels, matrix products by cuBLAS. On CPU tensors their references run."""

from collections.abc import Sequence

import torch
from semipd_kernels.decode_attention import (
    DecodeWorkspace,
    decode_attention,
    decode_workspace,
    most_items,
)
from semipd_kernels.embedding import embedding
from semipd_kernels.prefill_attention import PaddedSize, PrefillPlan, plan_prefill, prefill_attention
from semipd_kernels.rms_norm import add_rms_norm, rms_norm
from semipd_kernels.rope_write import rope_write
from semipd_kernels.silu_mul import silu_mul
from torch import Tensor

from semipd.network.ops import Heads
from semipd.network.ops_torch import linear
from semipd.network.rows import ChunkPlan, ChunkRows, DecodeRows, PassSize, StepRows


class KernelOps:
    """See network.ops.Ops.

    Args:
        dtype: of weights and KV.
        arch: compute capability, e.g. 90.
        dependent: launch kernels by programmatic dependent launch (see semipd_kernels.dependent).
        tma: decode attention loads by TMA (see semipd_kernels.decode_attention).
    """

    def __init__(self, dtype: torch.dtype, arch: int, *, dependent: bool = False, tma: bool = False) -> None:
        self._dtype = dtype
        self._arch = arch
        self._dependent = dependent
        self._tma = tma

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> Tensor:
        embedding(token_ids, table, out, dependent=self._dependent)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        rms_norm(x, weight, eps, out, dependent=self._dependent)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        add_rms_norm(x, residual, weight, eps, out, dependent=self._dependent)
        return out

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        return linear(x, weight, bias, out)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> Tensor:
        silu_mul(gate_up, out, dependent=self._dependent)
        return out

    def rope_and_cache(
        self, qkv: Tensor, heads: Heads, qk_norm: Tensor | None, rows: StepRows, layer_kv: Tensor
    ) -> None:
        rope_write(
            qkv,
            rows.positions,
            heads.frequencies,
            heads.rope_scale,
            rows.slots,
            layer_kv,
            qk_norm,
            heads.eps,
            dependent=self._dependent,
        )

    def decode_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, rows: DecodeRows, num_units: int, out: Tensor
    ) -> None:
        q, scale = qkv[:, : heads.num_q], heads.attention_scale
        decode_attention(
            q,
            layer_kv,
            rows.tables,
            rows.kv_lens,
            num_sms=num_units,
            scale=scale,
            out=out,
            workspace=DecodeWorkspace(*rows.workspace) if rows.workspace else None,
            dependent=self._dependent,
            tma=self._tma,
        )

    def decode_workspace(self, max_rows: int, heads: Heads, num_units: int) -> tuple[Tensor, ...]:
        num_items = most_items(max_rows, heads.num_kv, num_units)
        device = heads.frequencies.device
        return decode_workspace(
            max_rows, heads.num_q, heads.num_kv, heads.head_dim, num_items, device
        ).tensors

    def plan_chunks(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        heads: Heads,
        num_units: int,
        padded: PassSize | None = None,
    ) -> ChunkPlan:
        plan = plan_prefill(
            query_lens,
            kv_lens,
            num_heads=heads.num_q,
            num_kv_heads=heads.num_kv,
            head_dim=heads.head_dim,
            dtype=self._dtype,
            num_sms=num_units,
            arch=self._arch,
            padded=None if padded is None else PaddedSize(*padded),
        )
        return ChunkPlan(plan.items.numpy().reshape(-1), plan)

    def prefill_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, chunks: ChunkRows, num_units: int, out: Tensor
    ) -> None:
        plan = chunks.plan.details
        assert isinstance(plan, PrefillPlan), plan
        prefill_attention(
            qkv[:, : heads.num_q],
            layer_kv,
            chunks.tables,
            chunks.query_starts,
            chunks.kv_lens,
            out,
            PrefillPlan(chunks.work.view(-1, 2), plan.config, plan.num_seqs, qkv.shape[0]),
            num_sms=num_units,
            scale=heads.attention_scale,
        )
