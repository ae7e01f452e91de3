"""What SwiGLU's activation means, in plain torch."""

import torch
from torch import Tensor


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.to(torch.float32)
    activated = (wide / (1.0 + torch.exp(-wide))).to(gate.dtype)
    return (activated.to(torch.float32) * up.to(torch.float32)).to(gate.dtype)
