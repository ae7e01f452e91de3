"""Prefill attention by torch's scaled_dot_product_attention: each chunk's context is copied out of the pool,
then cuDNN or FlashAttention compute. A switch, and what the kernels of semipd_kernels are measured against.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from semipd_kernels.gather_kv import gather_kv
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from semipd.core.errors import SemipdError
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.network.config import ModelConfig
from semipd.network.ops import Heads
from semipd.network.rows import NO_PLAN, ChunkPlan, ChunkRows, PassSize

CUDNN_ROWS = 256
"""cuDNN plans anew for every shape, in milliseconds. It gets the beginnings of prompts whose length is a
multiple of this: full chunks, that is, which all have one shape."""


class SdpaOps(KernelOps):
    """Steps with chunks cannot be captured: torch wants lengths on the host."""

    def plan_chunks(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        heads: Heads,
        num_units: int,
        padded: PassSize | None = None,
    ) -> ChunkPlan:
        assert padded is None, "torch's attention reads lengths on the host"
        return NO_PLAN

    def prefill_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, chunks: ChunkRows, num_units: int, out: Tensor
    ) -> None:
        """Chunk after chunk: they share the memory of `chunks.context`."""
        assert chunks.context is not None, "nowhere to copy a context to"
        start = 0
        for idx, (length, kv_len) in enumerate(zip(chunks.host_query_lens, chunks.host_kv_lens, strict=True)):
            context = gather_kv(layer_kv, chunks.tables[idx], kv_len, chunks.context)
            own = slice(start, start + length)
            out[own] = attend(qkv[own, : heads.num_q], context, heads.attention_scale)
            start += length


def attend(q: Tensor, context: Tensor, scale: float) -> Tensor:
    """Causal attention of the last tokens of a context.

    Args:
        q: [length, heads, D].
        context: [2 (keys, values), kv heads, tokens, D].

    Returns [length, heads, D], a view.
    """
    # torch's compiler comes with it, a second and a half of a start: only where this path is used
    from torch.nn.attention.bias import causal_lower_right

    length, num_heads, _ = q.shape
    _, num_kv, kv_len, _ = context.shape
    # One query sees everything; a mask of torch's own kind lets FlashAttention align it to the last token.
    mask = causal_lower_right(length, kv_len) if 1 < length < kv_len else None
    with _backend(q, kv_len):
        attended = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            context[:1],
            context[1:],
            attn_mask=mask,
            is_causal=1 < length == kv_len,
            scale=scale,
            enable_gqa=num_kv != num_heads,
        )
    return attended[0].transpose(0, 1)


def check_sdpa(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """That torch has a kernel for every chunk: where FlashAttention cannot be used, torch would write out the
    mask of each chunk. Raises SemipdError(`unsupported_kernel`)."""
    cuda, num_q, num_kv = torch.backends.cuda, config.num_heads, config.num_kv_heads
    q = torch.empty(1, num_q, 16, config.head_dim, dtype=dtype, device=device)
    kv = torch.empty(1, num_kv, 32, config.head_dim, dtype=dtype, device=device)
    if not cuda.can_use_flash_attention(cuda.SDPAParams(q, kv, kv, None, 0.0, False, num_kv != num_q)):
        raise SemipdError(
            "unsupported_kernel",
            f"cuda.prefill_attention is sdpa, but torch {torch.__version__} has no FlashAttention here for "
            f"{dtype} with {num_q} query and {num_kv} KV heads of {config.head_dim}.",
            "Set cuda.prefill_attention to triton, or model.dtype to bfloat16.",
        )


def _backend(q: Tensor, kv_len: int) -> AbstractContextManager[None]:
    """On a CPU torch chooses itself."""
    if not q.is_cuda:
        return nullcontext()
    if q.shape[0] == kv_len and kv_len % CUDNN_ROWS == 0:
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
