"""The one place that decides who computes: Triton for CUDA tensors, the reference for CPU tensors."""

import os

from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs kernels on CPU tensors: for tests, see tests/kernels/conftest.py."""


def takes_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda or INTERPRETED
