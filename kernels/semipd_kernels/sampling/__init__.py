"""Sampling on the device, without the host waiting for it: the tokens of the sampler in semipd.sampling.

That sampler is the specification: order of operations, tie rules, Philox uniforms (the same bits), inverse
CDF in order of token ids. Greedy tokens and the survivors of top-k agree exactly. Masses are integers, in
units of 2^-40 of the most likely token's, and exp is the GPU's: off by a few 1e-7, by 2e-6 at the far end
where masses end. So a drawn token's CDF is within 1e-5 of the plain sampler's; the oracle of DESIGN section 3
allows 1e-4.
Tokens less likely than 2^-40 of the most likely one are never drawn.

A row's token depends on that row alone, and not on how the work is divided.
"""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from semipd.core.errors import SemipdError
from semipd.sampling.parameters import RowParams
from semipd.sampling.stages import Stages
from semipd_kernels.dispatch import takes_triton
from semipd_kernels.launches import Launch, LaunchCache
from semipd_kernels.sampling.reference import sample_reference
from semipd_kernels.sampling.workspace import SamplingMemory, SamplingWorkspace

__all__ = ["SamplingWorkspace", "sample"]

LOGITS_DTYPES = (torch.float32, torch.bfloat16)
NO_SLOT = -1
MAX_VOCAB_SIZE = 2**18
"""Masses of so many tokens sum to below 2^58."""


def sample(
    logits: Tensor,
    rows: RowParams,
    stages: Stages,
    slots: Tensor,
    counts: Tensor,
    workspace: SamplingWorkspace,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Next token of each row; -1 for a row that holds NaN or +inf or allows no token.

    The launches depend on shapes and `stages` alone; one sequence of them serves greedy and drawn rows.

    Args:
        logits: [B, V] fp32 or bf16, unit element stride, V at most 262,144; left unchanged.
        rows, stages: of B rows.
        slots: int64 [B], contiguous, different from each other: where a row that is adjusted has its counts.
        counts: int32 [slots, V], contiguous: histories and allowed tokens, see TokenHistory. Those of every
            adjusted row are read.
        workspace: for at least B rows, this V and these slots.
        out: int64 [B], contiguous; a new tensor if None.

    Returns `out`. Changes nothing else.

    Raises:
        SemipdError: `unsupported_kernel` for other dtypes, shapes or layouts.
    """
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device) if out is None else out
    sizes = (workspace.num_rows, workspace.vocab_size, workspace.num_slots)
    if not takes_triton(logits):
        _check(logits, rows, slots, counts, out, *sizes)
        return out.copy_(sample_reference(logits, rows, stages, slots, counts))
    used = used_slots(slots, stages)
    memory = (*_edits(stages, used), *_fields(rows), *_parts(workspace))
    tensors = (logits, slots, used, counts, out, *memory)
    _LAUNCHES.run(tensors, *sizes, stages.drawn is not None, stages.filters)
    return out


def _plan(
    logits: Tensor, slots: Tensor, used: Tensor, counts: Tensor, out: Tensor, *rest: Any
) -> Sequence[Launch]:
    """`rest`: as `sample` gives it."""
    from semipd_kernels.sampling.launch import launches

    *tensors, num_rows, vocab_size, num_slots, draws, cuts = rest
    edits, by_row, parts = tensors[:4], tensors[4 : 4 + len(ROW_FIELDS)], tensors[4 + len(ROW_FIELDS) :]
    rows, work = RowParams(*by_row), SamplingMemory(*parts)
    _check(logits, rows, slots, counts, out, num_rows, vocab_size, num_slots)
    if not len(logits):
        return ()
    return list(launches(logits, rows, used, tuple(edits), counts, work, out, draws, cuts))


_LAUNCHES = LaunchCache(_plan)
ROW_FIELDS = tuple(field.name for field in fields(RowParams))
_fields, _parts = attrgetter(*ROW_FIELDS), attrgetter(*SamplingMemory._fields)


def used_slots(slots: Tensor, stages: Stages) -> Tensor:
    """int32 [R]: NO_SLOT where the logits are taken as they are."""
    used = torch.full_like(slots, NO_SLOT, dtype=torch.int32)
    if stages.adjusted is not None:
        used.index_copy_(0, stages.adjusted, slots[stages.adjusted].to(torch.int32))
    return used


def _edits(stages: Stages, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`like`: int32 [R]."""
    if stages.edits is not None:
        return stages.edits.starts, stages.edits.tokens, stages.edits.bias, stages.edits.until
    none = like.new_zeros(0)
    return like.new_zeros(len(like) + 1), none, none.view(torch.float32), none.long()


def _check(
    logits: Tensor,
    rows: RowParams,
    slots: Tensor,
    counts: Tensor,
    out: Tensor,
    num_rows: int,
    vocab_size: int,
    num_slots: int,
) -> None:
    """The integers: of the workspace."""
    _check_logits(logits)
    _check_state(logits, rows, counts, num_rows, vocab_size, num_slots)
    _check_vector("slots", slots, len(logits), torch.int64)
    _check_vector("out", out, len(logits), torch.int64)


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or logits.dtype not in LOGITS_DTYPES or logits.stride(1) != 1:
        _refuse(
            "sampling takes logits [B, V], float32 or bfloat16, with unit element stride; "
            f"got {list(logits.shape)} {logits.dtype} strides {logits.stride()}"
        )
    if not 0 < logits.shape[1] <= MAX_VOCAB_SIZE:
        _refuse(f"sampling takes vocabularies of 1 to {MAX_VOCAB_SIZE} tokens; got {logits.shape[1]}")


def _check_state(
    logits: Tensor, rows: RowParams, counts: Tensor, work_rows: int, work_vocab_size: int, work_slots: int
) -> None:
    num_rows, vocab_size = logits.shape
    if len(rows) != num_rows:
        _refuse(f"sampling of {num_rows} rows of logits needs as many rows of parameters; got {len(rows)}")
    if counts.dim() != 2 or counts.shape[1] != vocab_size or counts.dtype != torch.int32:
        _refuse(f"sampling needs counts [slots, {vocab_size}] int32; got {list(counts.shape)} {counts.dtype}")
    if not counts.is_contiguous() or counts.shape[0] > work_slots:
        _refuse(
            f"sampling needs contiguous counts of at most {work_slots} slots, as the workspace has; "
            f"got {list(counts.shape)} strides {counts.stride()}"
        )
    if work_rows < num_rows or work_vocab_size != vocab_size:
        _refuse(
            f"the sampling workspace is for {work_rows} rows of {work_vocab_size} tokens; "
            f"got {num_rows} of {vocab_size}"
        )


def _check_vector(name: str, vector: Tensor, size: int, dtype: torch.dtype) -> None:
    if vector.shape != (size,) or vector.dtype != dtype or not vector.is_contiguous():
        _refuse(
            f"sampling needs {name} [{size}] {dtype}, contiguous; got {list(vector.shape)} {vector.dtype}"
        )


def _refuse(sentence: str) -> None:
    raise SemipdError("unsupported_kernel", f"{sentence}.")
