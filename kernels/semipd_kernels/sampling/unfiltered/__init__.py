"""Rows that need no change of their logits and no filter: greedy, or drawn by temperature and min-p.

Three launches on fixed memory do all of it, from logits to the sequence's new state, and what they do follows
from that state alone. So they can be captured behind the pass that computes the logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.sampling.parameters import Column, advance_columns
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.sampling import LOGITS_DTYPES, SamplingWorkspace
from semipd_kernels.sampling.reference import sample_unfiltered_reference


def sample_unfiltered(
    logits: Tensor, slots: Tensor, columns: Tensor, tokens: Tensor, workspace: SamplingWorkspace
) -> None:
    """Sample a token for each row and feed it back: the sequence's newest token, one position further.

    The tokens are those of `sample`. Rows of slot 0 are padding: nothing of theirs is read, and nothing
    written.

    Args:
        logits: [B, V] fp32 or bf16, unit element stride; left unchanged.
        slots: int32 [B], contiguous; 0 or different from each other.
        columns: int32 [columns, slots], contiguous, see semipd.sampling.parameters.Column. TOKEN and POSITION
            of the rows' slots change; a row without a token goes on with 0.
        tokens: int32 [B], contiguous, written; -1 for a row that holds NaN or +inf or allows no token.
        workspace: for at least B rows and this V.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    if not takes_triton(logits):
        check_rows(logits, slots, columns, tokens, workspace.num_rows, workspace.vocab_size)
        sampled = sample_unfiltered_reference(logits, slots, columns)
        torch.where(slots > 0, sampled.to(torch.int32), tokens, out=tokens)
        advance_columns(columns, slots.long(), tokens.clamp_min(0))
    elif len(logits):
        sums = (workspace.tile_best, workspace.tile_token, workspace.tile_mass)
        _LAUNCHES.run((logits, slots, columns, tokens, *sums))


def check_rows(
    logits: Tensor, slots: Tensor, columns: Tensor, tokens: Tensor, max_rows: int, vocab_size: int
) -> None:
    num_rows = len(logits)
    if logits.dtype not in LOGITS_DTYPES or logits.stride(1) != 1 or logits.shape[1] != vocab_size:
        _refuse(f"rows of {vocab_size} fp32 or bf16 logits", logits)
    if num_rows > max_rows:
        _refuse(f"at most {max_rows} rows, as its workspace has", logits)
    for name, vector in (("slots", slots), ("tokens", tokens)):
        if vector.shape != (num_rows,) or vector.dtype != torch.int32 or not vector.is_contiguous():
            _refuse(f"{name} int32 [{num_rows}], contiguous", vector)
    if columns.dtype != torch.int32 or len(columns) != len(Column) or not columns.is_contiguous():
        _refuse(f"{len(Column)} contiguous columns, int32", columns)


def _refuse(needed: str, got: Tensor) -> None:
    raise SemipdError(
        "unsupported_kernel",
        f"Sampling in a graph takes {needed}; got {list(got.shape)} {got.dtype} strides {got.stride()}.",
    )


def _plan(*tensors: Tensor) -> Sequence[Launch]:
    from semipd_kernels.sampling.unfiltered.launch import launches

    return launches(*tensors)


_LAUNCHES = LaunchCache(_plan)
