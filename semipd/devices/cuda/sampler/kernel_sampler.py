"""Sampling by the kernels of semipd_kernels. On CPU tensors their reference runs."""

import torch
from semipd_kernels.sampling import NO_SLOT, SamplingRows, SamplingUses, SamplingWorkspace, sample
from torch import Tensor

from semipd.devices.cuda.rows.sampling import Stages, TokenHistory
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.slots import Column, SlotState

_WORD = 0xFFFFFFFF


class KernelSampler:
    """See sampling.Sampler."""

    def __init__(self, size: LaneSize, device: torch.device) -> None:
        num_slots = size.max_num_seqs + 1
        self._workspace = SamplingWorkspace(size.max_num_seqs, size.vocab_size, num_slots, device)

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        rows = _rows(state.columns.index_select(1, slots), slots, stages)
        uses = SamplingUses(stages.draws, stages.filters)
        return sample(logits, rows, history.counts, self._workspace, uses=uses).to(torch.int32)


def _rows(columns: Tensor, slots: Tensor, stages: Stages) -> SamplingRows:
    def floats(column: Column) -> Tensor:
        return columns[column].view(torch.float32)

    low, high = (columns[column].long() for column in (Column.SEED_LOW_BITS, Column.SEED_HIGH_BITS))
    used_slots = torch.full_like(columns[Column.TOKEN], NO_SLOT)
    if stages.adjusted is not None:
        adjusted = stages.adjusted.long()
        used_slots.index_copy_(0, adjusted, slots[adjusted].to(torch.int32))
    starts, tokens, bias, until = _edits(columns, stages)
    return SamplingRows(
        temperature=floats(Column.TEMPERATURE_BITS),
        top_k=columns[Column.TOP_K],
        top_p=floats(Column.TOP_P_BITS),
        min_p=floats(Column.MIN_P_BITS),
        repetition=floats(Column.REPETITION_BITS),
        frequency=floats(Column.FREQUENCY_BITS),
        presence=floats(Column.PRESENCE_BITS),
        seeds=(high << 32) | (low & _WORD),
        positions=columns[Column.POSITION].long() + 1,
        slots=used_slots,
        edit_starts=starts,
        edit_tokens=tokens,
        edit_bias=bias,
        edit_until=until,
    )


def _edits(columns: Tensor, stages: Stages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if stages.edits is not None:
        edits = stages.edits
        return edits.starts, edits.tokens, edits.bias, edits.until.long()
    none = columns.new_zeros(0)
    return columns.new_zeros(columns.shape[1] + 1), none, none.view(torch.float32), none.long()
