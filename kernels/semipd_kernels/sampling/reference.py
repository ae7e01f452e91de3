"""What the kernels mean, in plain torch: the sampler of semipd.sampling, and log-probabilities."""

import math

import torch
from torch import Tensor

from semipd.sampling.parameters import RowParams
from semipd.sampling.sampler import sample
from semipd.sampling.stages import Stages


def sample_reference(
    logits: Tensor, rows: RowParams, stages: Stages, slots: Tensor, counts: Tensor
) -> Tensor:
    copied = logits.to(torch.float32, copy=True)
    return sample(
        copied, rows, stages, counts if stages.counted is None else counts[stages.counted.pick(slots)]
    )


def token_logprobs_reference(
    logits: Tensor, tokens: Tensor, num_top: Tensor, max_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    in_range = (tokens >= 0) & (tokens < logits.shape[1]) & (num_top >= 0)
    own = logprobs.gather(1, tokens.where(in_range, 0)[:, None]).squeeze(1).masked_fill(~in_range, math.nan)
    values, ids = (part[:, :max_top] for part in logprobs.sort(dim=-1, descending=True, stable=True))
    without = (num_top <= 0)[:, None]
    return own, ids.to(torch.int32).masked_fill(without, -1), values.masked_fill(without, math.nan)
