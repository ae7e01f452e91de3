"""Sampling on the device, without the host waiting for it: the tokens of the sampler in semipd.sampling.

That sampler is the specification: order of operations (bias, allowed tokens, min_tokens, penalties, then
greedy or temperature, top-k, top-p, min-p and the draw), tie rules, Philox uniforms (the same bits), inverse
CDF in order of token ids. Greedy tokens and the survivors of top-k agree exactly. Masses are integers, in
units of 2^-40 of the most likely token's, and exp is the GPU's: off by a few 1e-7, by 2e-6 at the far end
where masses end. So a drawn token's CDF is within 1e-5 of the plain sampler's; the oracle of DESIGN section 3
allows 1e-4.
Tokens less likely than 2^-40 of the most likely one are never drawn.

A row's token depends on that row alone, and not on how the work is divided.
"""

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_LOGPROBS
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.sampling.reference import (
    advance_reference,
    sample_reference,
    token_logprobs_reference,
)
from semipd_kernels.sampling.rows import NO_SLOT, SamplingRows, SamplingUses, count_history
from semipd_kernels.sampling.workspace import SamplingWorkspace

__all__ = [
    "NO_SLOT",
    "SamplingRows",
    "SamplingUses",
    "SamplingWorkspace",
    "advance",
    "count_history",
    "sample",
    "token_logprobs",
]

LOGITS_DTYPES = (torch.float32, torch.bfloat16)
MAX_VOCAB_SIZE = 2**18
"""Masses of so many tokens sum to below 2^58."""


def sample(
    logits: Tensor,
    rows: SamplingRows,
    counts: Tensor,
    workspace: SamplingWorkspace,
    *,
    uses: SamplingUses = SamplingUses(),  # noqa: B008 -- frozen
    out: Tensor | None = None,
) -> Tensor:
    """Next token of each row; -1 for a row that holds NaN or +inf or allows no token.

    Safe under graph capture: nothing is allocated if `out` is given, and the launches depend on the shapes
    and on `uses` alone. One sequence of launches serves greedy and drawn rows.

    Args:
        logits: [B, V] fp32 or bf16, unit element stride, V at most 262,144; left unchanged.
        rows: B rows.
        counts: int32 [slots, V], contiguous: histories and allowed tokens of the rows that have a slot (see
            `count_history`).
        workspace: for at least B rows, this V and these slots.
        uses: at least what the rows need, see `SamplingUses.of`; what it leaves out is not applied.
        out: int64 [B], contiguous; a new tensor if None.

    Returns `out`. Changes nothing else: `advance` moves on.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    _check_logits(logits)
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device) if out is None else out
    _check_state(logits, rows, counts, workspace, uses)
    _check_vector("out", out, len(logits), torch.int64)
    if not takes_triton(logits):
        return out.copy_(sample_reference(logits, rows, counts))
    if len(logits):
        from semipd_kernels.sampling.launch import launch

        launch(logits, rows, counts, workspace, uses, out)
    return out


def advance(tokens: Tensor, rows: SamplingRows, counts: Tensor) -> None:
    """Append `tokens`, int64 [B], to the histories: counts them for the rows that have a slot, and increments
    every position. A token outside the vocabulary (-1) is not counted."""
    _check_vector("tokens", tokens, len(rows), torch.int64)
    if not takes_triton(tokens):
        advance_reference(tokens, rows, counts)
    elif len(rows):
        from semipd_kernels.sampling.launch import launch_advance

        launch_advance(tokens, rows, counts)


def token_logprobs(
    logits: Tensor, tokens: Tensor, num_top: Tensor, max_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under the raw logits of the chosen tokens and of the best ones.

    Args:
        logits: [B, V] fp32 or bf16, unit element stride.
        tokens: int64 [B].
        num_top: int32 [B]: alternatives wanted; 0: only the chosen token's; -1: nothing.
        max_top: at least the largest `num_top`, at most min(V, MAX_LOGPROBS).

    Returns:
        Log-probabilities of the chosen tokens, fp32 [B]; NaN where none is wanted or the token is no id.
        Ids int32 [B, max_top] and log-probabilities fp32 [B, max_top] of the most likely tokens, falling,
        lower ids first among equals; -1 and NaN for rows that want no alternatives. Others get `max_top`.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    _check_logits(logits)
    _check_vector("tokens", tokens, len(logits), torch.int64)
    _check_vector("num_top", num_top, len(logits), torch.int32)
    if not 0 <= max_top <= min(MAX_LOGPROBS, logits.shape[1]):
        _refuse(
            f"token_logprobs offers 0 to {min(MAX_LOGPROBS, logits.shape[1])} alternatives; got {max_top}"
        )
    if not takes_triton(logits) or not len(logits):
        return token_logprobs_reference(logits, tokens, num_top, max_top)
    from semipd_kernels.sampling.logprobs.launch import launch

    return launch(logits, tokens, num_top, max_top)


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or logits.dtype not in LOGITS_DTYPES or logits.stride(1) != 1:
        _refuse(
            "sampling takes logits [B, V], float32 or bfloat16, with unit element stride; "
            f"got {list(logits.shape)} {logits.dtype} strides {logits.stride()}"
        )
    if not 0 < logits.shape[1] <= MAX_VOCAB_SIZE:
        _refuse(f"sampling takes vocabularies of 1 to {MAX_VOCAB_SIZE} tokens; got {logits.shape[1]}")


def _check_state(
    logits: Tensor, rows: SamplingRows, counts: Tensor, workspace: SamplingWorkspace, uses: SamplingUses
) -> None:
    num_rows, vocab_size = logits.shape
    if len(rows) != num_rows:
        _refuse(f"sampling of {num_rows} rows of logits needs as many rows of parameters; got {len(rows)}")
    if counts.dim() != 2 or counts.shape[1] != vocab_size or counts.dtype != torch.int32:
        _refuse(f"sampling needs counts [slots, {vocab_size}] int32; got {list(counts.shape)} {counts.dtype}")
    if not counts.is_contiguous() or counts.shape[0] > workspace.num_slots:
        _refuse(
            f"sampling needs contiguous counts of at most {workspace.num_slots} slots, as the workspace has; "
            f"got {list(counts.shape)} strides {counts.stride()}"
        )
    if workspace.num_rows < num_rows or workspace.vocab_size != vocab_size:
        _refuse(
            f"the sampling workspace is for {workspace.num_rows} rows of {workspace.vocab_size} tokens; "
            f"got {num_rows} of {vocab_size}"
        )
    if uses.filters not in (0, 1, 2):
        _refuse(f"a row combines 0, 1 or 2 filters; got {uses.filters}")


def _check_vector(name: str, vector: Tensor, size: int, dtype: torch.dtype) -> None:
    if vector.shape != (size,) or vector.dtype != dtype or not vector.is_contiguous():
        _refuse(
            f"sampling needs {name} [{size}] {dtype}, contiguous; got {list(vector.shape)} {vector.dtype}"
        )


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"{sentence}.")
