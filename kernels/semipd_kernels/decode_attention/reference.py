"""What decode attention means, one sequence at a time."""

from torch import Tensor


def decode_attention_reference(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, kv_lens: Tensor, scale: float, out: Tensor
) -> None:
    _, _, num_kv_heads, block_size, _ = kv_layer.shape
    for seq, kv_len in enumerate(kv_lens.tolist()):
        if kv_len <= 0:
            out[seq] = 0
            continue
        blocks = block_tables[seq, : -(-kv_len // block_size)].long()
        context = kv_layer[:, blocks].transpose(1, 2).flatten(2, 3)
        keys, values = context[:, :, :kv_len].float()
        rows = q[seq].float().view(num_kv_heads, -1, q.shape[2])
        weights = (rows @ keys.mT * scale).softmax(-1)
        out[seq] = (weights @ values).flatten(0, 1)
