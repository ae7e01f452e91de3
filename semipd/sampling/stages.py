"""Which stages of sampling a batch needs, and for which of its rows: known on the host, since it depends on
parameters only, while positions and counts change on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.sampling.parameters import float_bits

MAX_POSITION = 2**31 - 1
"""Positions travel as int32."""


def has_penalty(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


def needs_history(params: SamplingParams) -> bool:
    """Whether the sequence's counts say something: see TokenHistory."""
    return has_penalty(params) or bool(params.allowed_token_ids)


class Edit(NamedTuple):
    """A token's logit is changed by `bias`, and impossible for tokens at positions below `until`."""

    token: int
    bias: float
    until: int


def edits_of(params: SamplingParams, num_prompt_tokens: int, num_tokens: int) -> list[Edit]:
    """Logit bias and the stop tokens that min_tokens forbids, by rising token; each token once. What is over
    for a history of `num_tokens` is left out."""
    biases: dict[int, float] = {}
    for token, bias in params.logit_bias:
        biases[token] = biases.get(token, 0.0) + bias
    until = min(num_prompt_tokens + params.min_tokens, MAX_POSITION)
    stops = set(params.stop_token_ids) if params.min_tokens and num_tokens < until else set()
    return [
        Edit(token, biases.get(token, 0.0), until if token in stops else 0)
        for token in sorted(biases.keys() | stops)
    ]


class RowSet(NamedTuple):
    """Some rows of a batch. `rows`: int64, rising; None: all of them."""

    rows: Tensor | None

    def pick(self, values: Tensor) -> Tensor:
        """Their values: a copy, or `values` itself if it is all of them."""
        return values if self.rows is None else values.index_select(0, self.rows)

    def put(self, values: Tensor, picked: Tensor) -> Tensor:
        """`values` after what `pick` gave has become `picked`, in place."""
        return picked if self.rows is None else values.index_copy_(0, self.rows, picked)


@dataclass(frozen=True, slots=True)
class Edits:
    """At most one edit per row and token.

    Attributes:
        starts: int32 [R + 1]: row i owns the edits from starts[i] to starts[i + 1].
        rows, tokens: int32. bias: float32. until: int64.
    """

    starts: Tensor
    rows: Tensor
    tokens: Tensor
    bias: Tensor
    until: Tensor


@dataclass(frozen=True, slots=True)
class Stages:
    """Attributes:
    edits: None: no row has any.
    counted: rows that need their history; None: no row does. Then `restricts` (allowed tokens), `repeats`
        (repetition penalty) and `outputs` (frequency or presence penalty) say what some of them have.
    adjusted: int64, rows that have edits or stand in `counted`; None: no row.
    drawn: rows with a temperature; None: no row. Then `max_top_k` (0: off in every row), `top_p` (those of
        the drawn rows that have one) and `min_p` say what cuts, and `filters` whether top-k or top-p does.
    """

    edits: Edits | None
    counted: RowSet | None
    restricts: bool
    repeats: bool
    outputs: bool
    adjusted: Tensor | None
    drawn: RowSet | None
    max_top_k: int
    top_p: RowSet | None
    min_p: bool
    filters: bool

    @property
    def adjusts(self) -> bool:
        return self.edits is not None or self.counted is not None


class StagePlan:
    """The stages of a batch before their vectors are on the device.

    Attributes:
        vectors: int32 by name; `bind` takes them as tensors.
        masked_steps: after so many steps `edits` change nothing; None: they always do.
    """

    def __init__(self, rows: Sequence[tuple[SamplingParams, int, int]], vocab_size: int) -> None:
        """`rows`: parameters, number of prompt tokens, of tokens in the history."""
        self.vectors: dict[str, Sequence[int]] = {}
        params = [row[0] for row in rows]
        edits = [edits_of(*row) for row in rows] if any(map(_has_edits, params)) else [[] for _ in rows]
        self._add_edits(edits, [row[2] for row in rows])
        counted = [row for row, p in enumerate(params) if needs_history(p)]
        self._counted = self._row_set("counted", counted, len(rows))
        self._restricts = any(p.allowed_token_ids for p in params)
        self._repeats = any(p.repetition_penalty != 1.0 for p in params)
        self._outputs = any((p.frequency_penalty, p.presence_penalty) != (0.0, 0.0) for p in params)
        if adjusted := sorted({*counted, *(row for row, own in enumerate(edits) if own)}):
            self.vectors["adjusted"] = adjusted
        self._drawn = self._row_set("drawn", [i for i, p in enumerate(params) if not p.greedy], len(rows))
        drawn = [p for p in params if not p.greedy]
        self._top_p = self._row_set("top_p", [i for i, p in enumerate(drawn) if p.top_p < 1.0], len(drawn))
        self._max_top_k = max((p.top_k for p in drawn if p.top_k < vocab_size), default=0)
        self._min_p = any(p.min_p > 0.0 for p in drawn)
        self._filters = any(p.top_k > 0 or p.top_p < 1.0 for p in drawn)

    @property
    def is_unfiltered(self) -> bool:
        """Whether every row is greedy or drawn from its raw logits, by temperature and min-p alone."""
        return not self._filters and "adjusted" not in self.vectors

    def bind(self, tensors: Mapping[str, Tensor]) -> Stages:
        """`tensors`: the vectors on the device, int32."""

        def rows_of(name: str, is_any: bool) -> RowSet | None:
            return RowSet(tensors[name].long() if name in tensors else None) if is_any else None

        return Stages(
            edits=_bound_edits(tensors) if "edit_tokens" in tensors else None,
            counted=rows_of("counted", self._counted),
            restricts=self._restricts,
            repeats=self._repeats,
            outputs=self._outputs,
            adjusted=tensors["adjusted"].long() if "adjusted" in tensors else None,
            drawn=rows_of("drawn", self._drawn),
            max_top_k=self._max_top_k,
            top_p=rows_of("top_p", self._top_p),
            min_p=self._min_p,
            filters=self._filters,
        )

    def _add_edits(self, edits: Sequence[Sequence[Edit]], num_tokens: Sequence[int]) -> None:
        flat = [(row, edit) for row, own in enumerate(edits) for edit in own]
        has_bias = any(edit.bias for _, edit in flat)
        steps = (edit.until - num_tokens[row] for row, edit in flat)
        self.masked_steps = None if has_bias else max(steps, default=None)
        if flat:
            self.vectors["edit_starts"] = list(accumulate(map(len, edits), initial=0))
            self.vectors["edit_rows"] = [row for row, _ in flat]
            self.vectors["edit_tokens"] = [edit.token for _, edit in flat]
            self.vectors["edit_bias"] = [float_bits(edit.bias) for _, edit in flat]
            self.vectors["edit_until"] = [edit.until for _, edit in flat]

    def _row_set(self, name: str, rows: Sequence[int], num_rows: int) -> bool:
        """Whether there are any; which ones need not be said of all."""
        if 0 < len(rows) < num_rows:
            self.vectors[name] = rows
        return bool(rows)


def _has_edits(params: SamplingParams) -> bool:
    return bool(params.logit_bias or params.min_tokens)


def _bound_edits(tensors: Mapping[str, Tensor]) -> Edits:
    return Edits(
        tensors["edit_starts"],
        tensors["edit_rows"],
        tensors["edit_tokens"],
        tensors["edit_bias"].view(torch.float32),
        tensors["edit_until"].long(),
    )
