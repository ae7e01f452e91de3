"""What the operation means, in plain torch."""

import torch
from torch import Tensor


def prefill_attention_reference(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    kv_lens: Tensor,
    out: Tensor,
    scale: float,
) -> Tensor:
    num_kv, block_size, head_dim = kv_layer.shape[2:]
    starts = query_starts.tolist()
    for seq, kv_len in enumerate(kv_lens.tolist()):
        start, stop = starts[seq], starts[seq + 1]
        if start == stop:
            continue  # padding
        blocks = block_tables[seq, : -(-kv_len // block_size)].long()
        # [2, kv heads, blocks, block_size, D] without the last block's empty slots
        context = kv_layer[:, blocks].transpose(1, 2).reshape(2, num_kv, -1, head_dim)[:, :, :kv_len]
        keys, values = context.to(torch.float32).repeat_interleave(q.shape[1] // num_kv, dim=1)
        queries = q[start:stop].transpose(0, 1).to(torch.float32)
        hidden = torch.ones(stop - start, kv_len, dtype=torch.bool).triu(kv_len - (stop - start) + 1)
        scores = (queries @ keys.mT * scale).masked_fill(hidden.to(q.device), -torch.inf)
        out[start:stop] = (scores.softmax(dim=-1) @ values).transpose(0, 1).to(out.dtype)
    return out
