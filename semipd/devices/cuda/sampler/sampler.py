"""Sampling a step's rows from per-slot parameters, without waiting for the host: positions, newest tokens and
counts are on the device, since a step may be launched before the one before it has settled."""

from typing import Protocol

import torch
from torch import Tensor

from semipd.devices.cuda.rows.slots import SlotState
from semipd.sampling.history import TokenHistory
from semipd.sampling.parameters import RowParams
from semipd.sampling.sampler import sample, sample_unfiltered
from semipd.sampling.stages import Stages


class Sampler(Protocol):
    """Of one lane. `num_bytes`: of the device memory that it works in."""

    @property
    def num_bytes(self) -> int: ...

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        """Next token of each row, int32 [R], INVALID_TOKEN where a row has no finite largest logit.

        `logits` float32 [R, vocab] may be overwritten; `slots` int64 [R]. Changes neither state nor history.
        """

    def sample_unfiltered(self, logits: Tensor, slots: Tensor, state: SlotState, tokens: Tensor) -> None:
        """The same for rows that need no more of their parameters than temperature and min-p, and the tokens'
        way back into `state`. Can be captured: it launches the same whatever the rows hold.

        `logits` [R, vocab] float32, left unchanged; `slots` int32 [R]: rows of the padding slot are left out;
        `tokens` int32 [R], written.
        """


class TorchSampler:
    """The sampler of semipd.sampling. On a GPU top-p waits for the device, see nucleus."""

    num_bytes = 0

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        rows = RowParams.of(state.columns.index_select(1, slots))
        counts = history.counts if stages.counted is None else history.counts[stages.counted.pick(slots)]
        return sample(logits, rows, stages, counts).to(torch.int32)

    def sample_unfiltered(self, logits: Tensor, slots: Tensor, state: SlotState, tokens: Tensor) -> None:
        rows = RowParams.of(state.columns.index_select(1, slots))
        tokens.copy_(sample_unfiltered(logits, rows))
        state.advance(slots.long(), tokens.clamp_min(0))
