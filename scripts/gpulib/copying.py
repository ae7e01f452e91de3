"""The yardstick for everything that streams memory."""

import statistics
from typing import Any

import torch

NUM_BYTES = 2**31
ROUNDS = 8


def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written per second of a device-to-device copy on the whole GPU, median."""
    source = torch.ones(NUM_BYTES // 4, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    times_ms: list[float] = []
    for _ in range(ROUNDS):
        begin, end = _event(), _event()
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times_ms.append(begin.elapsed_time(end))
    return 2 * NUM_BYTES / statistics.median(times_ms) * 1e3


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)
