"""What torch offers for attention, on the contexts of the benchmark's pools. Imports torch."""

from collections.abc import Callable

from torch import Tensor, cat
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Run = Callable[[], tuple[Tensor, ...]]


def sdpa(q: Tensor, pool: Tensor, tables: Tensor, context: int) -> dict[str, Run]:
    """torch's attention, one entry per backend, on keys and values gathered beforehand: contiguous for it.

    `q`: [S, L, heads, D], the last L of `context` tokens.
    """
    from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler, a second and a half

    query_len = q.shape[1]
    queries = q.transpose(1, 2)
    keys, values = (
        part[tables.long()].transpose(1, 2).flatten(2, 3)[:, :, :context].contiguous() for part in pool
    )
    mask = None if query_len in (1, context) else causal_lower_right(query_len, context)

    def with_backend(backend: SDPBackend) -> Run:
        def run() -> tuple[Tensor, ...]:
            with sdpa_kernel(backend):
                attended = functional.scaled_dot_product_attention(
                    queries,
                    keys,
                    values,
                    attn_mask=mask,
                    is_causal=query_len == context,
                    enable_gqa=keys.shape[1] != queries.shape[1],
                )
            return (attended.transpose(1, 2).flatten(0, 1),)

        return run

    return {
        "sdpa flash": with_backend(SDPBackend.FLASH_ATTENTION),
        "sdpa cudnn": with_backend(SDPBackend.CUDNN_ATTENTION),
        "sdpa efficient": with_backend(SDPBackend.EFFICIENT_ATTENTION),
    }


def served_sdpa(q: Tensor, pool: Tensor, tables: Tensor, context: int) -> Run:
    """What `cuda.prefill_attention = "sdpa"` does: contexts are copied, one after the other.

    `q`: [S, L, heads, D], the last L of `context` tokens.
    """
    from semipd_kernels.gather_kv import gather_kv

    from semipd.devices.cuda.forward.sdpa_ops import attend

    memory = pool.new_empty(2, pool.shape[2], tables.shape[1] * pool.shape[3], pool.shape[4])

    def run() -> tuple[Tensor, ...]:
        parts = [
            attend(queries, gather_kv(pool, table, context, memory), queries.shape[2] ** -0.5)
            for queries, table in zip(q, tables, strict=True)
        ]
        return (cat(parts),)

    return run
