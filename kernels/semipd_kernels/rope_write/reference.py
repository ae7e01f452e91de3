"""What the operation means, in plain torch."""

import torch
from torch import Tensor


def rope_write_reference(
    qkv: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    rope_scale: float,
    slot_mapping: Tensor,
    kv_pool: Tensor,
    qk_norm: Tensor | None,
    eps: float,
) -> None:
    _, num_blocks, num_kv, block_size, _ = kv_pool.shape
    rows = ((slot_mapping >= 0) & (slot_mapping < num_blocks * block_size)).nonzero().squeeze(1)
    slots, num_qk = slot_mapping[rows].long(), qkv.shape[1] - num_kv
    qk = qkv[rows, :num_qk].to(torch.float32)
    if qk_norm is not None:
        qk = qk * torch.rsqrt(qk.square().mean(dim=-1, keepdim=True) + eps) * qk_norm
    angles = positions[rows].to(torch.float32)[:, None, None] * frequencies
    cos, sin = angles.cos() * rope_scale, angles.sin() * rope_scale
    first, second = qk.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv.dtype)
    blocks, offsets = slots // block_size, slots % block_size
    kv_pool[0, blocks, :, offsets] = rotated[:, num_qk - num_kv :]
    kv_pool[1, blocks, :, offsets] = qkv[rows, num_qk:]
    qkv[rows, : num_qk - num_kv] = rotated[:, : num_qk - num_kv]
