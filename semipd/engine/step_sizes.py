"""How many tokens the steps of a lane compute, as a histogram."""

from bisect import bisect_left

from semipd.core.state.engine import StepSizes

BOUNDS_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""vLLM's."""


class StepSizeHistogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_TOKENS) + 1)
        self._sum_tokens = 0

    def add(self, num_tokens: int) -> None:
        """Prefill and decode of one step. One of none, that only changes who is resident, is not counted."""
        if num_tokens:
            self._counts[bisect_left(BOUNDS_TOKENS, num_tokens)] += 1
            self._sum_tokens += num_tokens

    def to_wire(self) -> StepSizes:
        return {"bounds": list(BOUNDS_TOKENS), "counts": list(self._counts), "sum_tokens": self._sum_tokens}
