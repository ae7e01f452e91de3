"""What the kernels mean, in plain torch: the sampler of semipd.sampling."""

import torch
from torch import Tensor

from semipd.sampling.parameters import RowParams
from semipd.sampling.sampler import sample, sample_unfiltered
from semipd.sampling.stages import Stages


def sample_reference(
    logits: Tensor, rows: RowParams, stages: Stages, slots: Tensor, counts: Tensor
) -> Tensor:
    copied = logits.to(torch.float32, copy=True)
    return sample(
        copied, rows, stages, counts if stages.counted is None else counts[stages.counted.pick(slots)]
    )


def sample_unfiltered_reference(logits: Tensor, slots: Tensor, columns: Tensor) -> Tensor:
    return sample_unfiltered(logits.float(), RowParams.of(columns.index_select(1, slots)))
