"""A batch that is sampled step after step: built from histories when membership changes, else advanced."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.sampling.history import TokenHistory
from semipd.sampling.parameters import RowParams, column_values
from semipd.sampling.philox import seed_key, uniforms
from semipd.sampling.sampler import Ahead, masks_of, sample
from semipd.sampling.stages import StagePlan, needs_history

_DRAWS_AHEAD = 32
"""Philox costs as many operations for the random numbers of 32 steps as for those of one."""


class SamplingRow(NamedTuple):
    """What sampling needs of one sequence. `token_ids` is prompt and output; the next token is sampled."""

    params: SamplingParams
    token_ids: Sequence[int]
    num_prompt_tokens: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


class SamplingBatch:
    """Parameters and histories of a fixed set of rows as tensors."""

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        columns = _ints([column_values(row.params, row.token_ids) for row in rows], device)
        self._rows = RowParams.of(columns.t().contiguous())
        facts = [(row.params, row.num_prompt_tokens, len(row.token_ids)) for row in rows]
        plan = StagePlan(facts, vocab_size)
        self._stages = plan.bind({name: _ints(vector, device) for name, vector in plan.vectors.items()})
        self._masked_steps = plan.masked_steps
        self._num_steps = 0
        self._history = _history([row for row in rows if needs_history(row.params)], vocab_size, device)
        self._slots = torch.arange(len(self._history.counts), device=device)
        self._masks = masks_of(self._history.counts) if self._stages.restricts else None
        self._step = _DRAWS_AHEAD

    def sample(self, logits: Tensor) -> Tensor:
        """Next token of each row, int64 [rows], from raw logits, fp32 [rows, vocab] (left unchanged).

        A row without a finite largest logit yields INVALID_TOKEN, for the caller to refuse once the tokens
        have left the device. Changes nothing: `advance` moves on.
        """
        if self._stages.adjusts:
            logits = logits.clone()
        ahead = Ahead(self._uniform(), self._masks)
        return sample(logits, self._rows, self._stages, self._history.counts, ahead)

    def advance(self, tokens: Tensor) -> None:
        """Append `tokens`, int64 [rows], to the histories. Equal to building the batch anew."""
        if self._stages.counted is not None:
            self._history.advance(self._slots, self._stages.counted.pick(tokens))
        self._rows.positions.add_(1)
        self._step += 1
        self._num_steps += 1
        if self._num_steps == self._masked_steps:
            # A batch that adjusts nothing need not copy its logits.
            self._stages = replace(self._stages, edits=None)

    def _uniform(self) -> Tensor | None:
        """float32 [drawn rows] for the current positions."""
        drawn = self._stages.drawn
        if drawn is None:
            return None
        if self._step >= _DRAWS_AHEAD:
            ahead = torch.arange(_DRAWS_AHEAD, device=self._rows.positions.device)
            key = seed_key(drawn.pick(self._rows.seeds)[:, None])
            self._ahead = uniforms(key, drawn.pick(self._rows.positions)[:, None] + ahead)
            self._step = 0
        return self._ahead[:, self._step]


def _ints(values: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _history(rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> TokenHistory:
    history = TokenHistory(len(rows), vocab_size, device)
    for slot, row in enumerate(rows):
        allowed = _ints(row.params.allowed_token_ids, device) if row.params.allowed_token_ids else None
        history.join(slot, _ints(row.token_ids, device), row.num_prompt_tokens, allowed)
    return history
