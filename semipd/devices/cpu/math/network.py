"""The network on a CPU: a whole step in one pass."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from semipd.devices.cpu.math.ops import CpuOps
from semipd.network.activations import Activations
from semipd.network.config import ModelConfig
from semipd.network.network import Network
from semipd.network.rows import PassResult, StepRows


class CpuNetwork:
    """See network.Network for the arguments; matrices may be packed."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], kv_pool: Tensor) -> None:
        self._config = config
        self.block_size = kv_pool.shape[4]
        self._ops = CpuOps(kv_pool)
        self._network = Network(config, weights, kv_pool, self._ops)
        self._memory = Activations.reserve(config, 0, kv_pool)
        self._logits = torch.empty(0)

    @torch.inference_mode()
    def forward(self, rows: StepRows, wanted: Tensor | None) -> PassResult:
        """See steps.runner.Decoder."""
        network = self._network
        # Operations bring memory of their own, but for attention.
        attended = self._memory.attended.new_empty(rows.num_rows, self._config.q_width)
        memory = replace(self._memory, attended=attended)
        network.embed(rows, memory)
        network.layers(rows, memory, range(network.num_layers), 0)
        self._ops.end_pass()
        unsound = None if rows.chunks is None else _unsound(memory.attended[rows.num_decode :])
        return PassResult(network.logits(network.finish(memory, wanted), self._logits), unsound)


def _unsound(attended: Tensor) -> Tensor:
    """What was not finite in an earlier layer has made its row's values in the last one NaN."""
    return attended.sum(dim=1, dtype=torch.float32).isfinite().logical_not_()
