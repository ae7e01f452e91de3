"""The launch. Imports triton."""

import math
from collections.abc import Sequence

from torch import Tensor

from semipd_kernels.launches import Launch
from semipd_kernels.prefill_attention.kernel import prefill_attention_kernel
from semipd_kernels.prefill_attention.plan import HEADER_ROWS, PrefillPlan

LOG2_E = math.log2(math.e)


def launches(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    plan: PrefillPlan,
    num_sms: int,
    scale: float,
) -> Sequence[Launch]:
    keys, values = kv_layer.unbind(0)
    _, num_kv, block_size, head_dim = keys.shape
    config, num_items = plan.config, plan.items.shape[0] - HEADER_ROWS
    assert plan.items.device == q.device, f"the plan's items are on {plan.items.device}, q on {q.device}"
    num_workers = min(num_sms * config.ctas_per_sm, num_items * num_kv)
    tensors = (q, keys, values, block_tables, query_starts, kv_lens, plan.items, out)
    strides = (block_tables.stride(0), q.stride(0), out.stride(0), keys.stride(0))
    constants = {
        "KV_HEADS": num_kv,
        "GROUP": q.shape[1] // num_kv,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    args = (*tensors, scale * LOG2_E, *strides)
    return [Launch(prefill_attention_kernel, num_workers, args, constants)]
