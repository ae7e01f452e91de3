"""The network on a CPU: a whole step in one pass."""

from collections.abc import Mapping

import torch
from torch import Tensor

from semipd.devices.cpu.math.ops import CpuOps
from semipd.network.activations import Activations
from semipd.network.batch import BatchInput
from semipd.network.config import ModelConfig
from semipd.network.network import Network
from semipd.network.ops_torch import no_plan
from semipd.network.rows import ChunkRows, DecodeRows, StepRows


class CpuNetwork:
    """See network.Network for the arguments; matrices may be packed."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], kv_pool: Tensor) -> None:
        self._config = config
        self._ops = CpuOps(kv_pool)
        self._network = Network(config, weights, kv_pool, self._ops)
        self._like = kv_pool.new_empty(0)

    @torch.inference_mode()
    def forward(self, batch: BatchInput) -> Tensor:
        """Logits [R, vocab_size] float32 of `batch.logit_rows`. Writes the KV of every row into the pool."""
        network, rows = self._network, _step_rows(batch)
        memory = Activations.reserve(self._config, rows.num_rows, self._like)
        network.embed(rows, memory)
        network.layers(rows, memory, range(network.num_layers), 0)
        self._ops.end_pass()
        _note_unsound(memory.attended, batch)
        logits = torch.empty(len(batch.logit_rows), self._config.vocab_size)
        return network.logits(network.finish(memory, batch.logit_rows), logits)


def _note_unsound(attended: Tensor, batch: BatchInput) -> None:
    """What was not finite in an earlier layer has made its row's values in the last one NaN."""
    if batch.unsound is not None:
        batch.unsound.copy_(attended.sum(dim=1, dtype=torch.float32).isfinite().logical_not_())


def _step_rows(batch: BatchInput) -> StepRows:
    """Sequences with one row that stand before all others decode."""
    lens, tables, kv_lens = batch.query_lens, batch.block_tables, torch.tensor(batch.kv_lens)
    count = next((idx for idx, length in enumerate(lens) if length > 1), len(lens))
    decode = DecodeRows(tables[:count], kv_lens[:count]) if count else None
    chunks = None
    if count < len(lens):
        plan, starts = no_plan(), torch.tensor([0, *lens[count:]]).cumsum(0)
        chunks = ChunkRows(
            tables[count:],
            starts,
            kv_lens[count:],
            torch.empty(0),
            plan,
            lens[count:],
            batch.kv_lens[count:],
        )
    return StepRows(batch.token_ids, batch.positions, batch.slot_mapping, decode, chunks)
