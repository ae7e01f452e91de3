"""Measured times against measured limits."""

from dataclasses import dataclass
from typing import Literal

from kernellib.workloads import Work


@dataclass(frozen=True, slots=True)
class Roofline:
    """Of one lane: what a large copy moved (read and written bytes) and what a large bf16 matmul computed."""

    num_sms: int
    copy_gb_s: float
    matmul_tflop_s: float

    def least_us(self, work: Work) -> float:
        """The larger of the two times that nothing beats."""
        return max(work.num_bytes / self.copy_gb_s / 1e3, work.flops / self.matmul_tflop_s / 1e6)


def rate(work: Work, bound: Literal["memory", "compute"], us: float) -> float:
    """GB/s, or TFLOP/s."""
    return work.num_bytes / us / 1e3 if bound == "memory" else work.flops / us / 1e6


def share(work: Work, bound: Literal["memory", "compute"], us: float, limit: Roofline) -> float:
    """Rate over the limit of its kind: 1 is the roofline. A cached working set can exceed it."""
    most = limit.copy_gb_s if bound == "memory" else limit.matmul_tflop_s
    return rate(work, bound, us) / most
