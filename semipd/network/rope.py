"""Rotary positions (arXiv 2104.09864); the two halves of each head form the pairs (NeoX style)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from semipd.network.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions, [head_dim / 2] float32, and the scale of cos and sin.

    * default: theta^(-2i / head_dim).
    * linear: divided by `factor` (position interpolation, arXiv 2306.15595).
    * llama3: long wavelengths divided by `factor`, short ones kept, a linear blend between (Llama 3.1's
      `apply_scaling`, github.com/meta-llama/llama-models).
    * yarn: "NTK-by-parts" with its attention scale, arXiv 2309.00071, section 3; `mscale`, `mscale_all_dim`
      and `truncate` as in transformers' `_compute_yarn_parameters`.
    """
    base = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "linear":
        return base / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, base), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, base, head_dim), yarn_attention_scale(rope)
    return base, 1.0


def _llama3(rope: RopeConfig, base: Tensor) -> Tensor:
    rotations = rope.original_context_tokens * base / (2 * math.pi)
    keep = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return _blend(base / rope.factor, base, keep.clamp(0.0, 1.0))


def _yarn(rope: RopeConfig, base: Tensor, head_dim: int) -> Tensor:
    """Dimensions that turn more than beta_fast times over the original context are kept, those that turn less
    than beta_slow times are interpolated."""

    def dimension(rotations: float) -> float:
        ratio = rope.original_context_tokens / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    interpolate = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    return _blend(base, base / rope.factor, interpolate)


def yarn_attention_scale(rope: RopeConfig) -> float:
    """The scale of cos and sin; it enters the attention logits squared (arXiv 2309.00071, equation 22)."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return first * (1 - weight) + second * weight


def rotation(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """cos [T, 1, head_dim] and sin [T, 1, head_dim / 2], float32, for `positions` [T].

    Computed per step (a few thousand values, shared by all layers) rather than looked up in a table of
    max_model_len rows, which every lane would have to hold.
    """
    angles = positions.to(torch.float32)[:, None, None] * frequencies
    cos = angles.cos().mul_(scale)
    return torch.cat((cos, cos), dim=-1), angles.sin().mul_(scale)


def normed_and_rotated(
    qk: Tensor, qk_norm: Tensor | None, eps: float, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """Queries and keys [T, heads, head_dim], in float32; see Ops.rope_and_cache."""
    wide = qk.float()
    if qk_norm is not None:
        wide = functional.rms_norm(wide, wide.shape[-1:], eps=eps) * qk_norm
    return rotate(wide, *rotary)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [T, heads, head_dim] float32 rotated by the angles of `rotation`, as a new tensor."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = x * cos
    out[..., :half].addcmul_(second, sin, value=-1)
    out[..., half:].addcmul_(first, sin)
    return out
