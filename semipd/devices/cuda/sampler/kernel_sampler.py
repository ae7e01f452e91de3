"""Sampling by the kernels of semipd_kernels. On CPU tensors the sampler of semipd.sampling runs."""

import torch
from semipd_kernels.sampling import SamplingWorkspace, sample
from semipd_kernels.sampling.unfiltered import sample_unfiltered
from torch import Tensor

from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.slots import SlotState
from semipd.sampling.history import TokenHistory
from semipd.sampling.parameters import RowParams
from semipd.sampling.stages import Stages


class KernelSampler:
    """See sampler.Sampler."""

    def __init__(self, size: LaneSize, device: torch.device) -> None:
        num_slots = size.max_num_seqs + 1
        self._workspace = SamplingWorkspace(size.max_num_seqs, size.vocab_size, num_slots, device)

    @property
    def num_bytes(self) -> int:
        return self._workspace.num_bytes

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        rows = RowParams.of(state.columns.index_select(1, slots))
        return sample(logits, rows, stages, slots, history.counts, self._workspace).to(torch.int32)

    def sample_unfiltered(self, logits: Tensor, slots: Tensor, state: SlotState, tokens: Tensor) -> None:
        sample_unfiltered(logits, slots, state.columns, tokens, self._workspace)
