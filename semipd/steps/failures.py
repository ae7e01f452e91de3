"""Which sequences a step ends, and that nothing else is said of them."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.plan import INVALID_LOGITS, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId

PromptEntries = dict[SeqId, list[TokenLogprobs]]


def failed_sequences(
    sampled: Iterable[SeqId],
    tokens: Sequence[int],
    unsound: Iterable[SeqId],
    prompt_logprobs: PromptEntries | None,
) -> dict[SeqId, str] | None:
    """See StepResult.failed.

    Args:
        sampled, tokens: aligned; a negative token: the row had none to give.
        unsound: sequences whose KV of this step is not finite.
        prompt_logprobs: a NaN among them is a row of logits that holds NaN or +inf, or -inf only.
    """
    failed = list(unsound)
    if min(tokens, default=0) < 0:
        failed += [seq for seq, token in zip(sampled, tokens, strict=True) if token < 0]
    if prompt_logprobs is not None:
        failed += [seq for seq, entries in prompt_logprobs.items() if _has_nan(entries)]
    return dict.fromkeys(failed, INVALID_LOGITS) if failed else None


def unsound_sequences(segments: Sequence[Segment], is_unsound: Tensor) -> list[SeqId]:
    """Those of a step's `segments` with a row whose attention is not finite: the KV of this step, or what it
    reads, is not either. `is_unsound`: bool, the segments' rows end to end."""
    if not is_unsound.any():
        return []
    flags = torch.split(is_unsound, [segment.length for segment in segments])
    return [s.seq for s, of_segment in zip(segments, flags, strict=True) if of_segment.any()]


def without_failed(prompt_logprobs: PromptEntries | None, failed: dict[SeqId, str]) -> PromptEntries | None:
    if prompt_logprobs is None:
        return None
    return {seq: entries for seq, entries in prompt_logprobs.items() if seq not in failed} or None


def check_trial(steps: Iterable[tuple[StepPlan, StepResult]], dtype: str) -> None:
    """Of the steps run before serving. A checkpoint may have rows that no text needs; but if no sequence at
    all got logits, none ever will: raises SemipdError(`invalid_logits`)."""
    num_failed = num_seqs = 0
    for plan, result in steps:
        num_seqs += len({*plan.decode, *(segment.seq for segment in plan.segments)})
        num_failed += len(result.failed or {})
    if num_seqs and num_failed == num_seqs:
        raise SemipdError(
            INVALID_LOGITS,
            f"The model has no valid logits: in {dtype} they hold NaN or infinity for each of {num_seqs} "
            "trial sequences, so no request could be served.",
            "Check the checkpoint and engine.dtype; float16 overflows where bfloat16 or float32 do not.",
        )


def _has_nan(entries: Iterable[TokenLogprobs]) -> bool:
    return any(math.isnan(entry.logprob) for entry in entries)
