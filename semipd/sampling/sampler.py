"""Sampling as a function of (logits, parameters, token history, seed, position): DESIGN section 3.

Order, fp32 throughout:

    raw logits -> logit bias -> allowed_token_ids masks every other token -> min_tokens masks stop tokens
    -> repetition, frequency, presence penalty
    -> greedy (lowest id among equals), or: temperature -> top-k -> top-p -> min-p -> inverse CDF

Bias, masks and penalties are applied as vLLM applies them (repetition counts prompt and output, the
other two count output). A mask adds -inf, so NaN and +inf stay invalid wherever they stand: a row that holds
one, or has no token left, yields none. min-p comes last, as in transformers; vLLM applies it before top-k.
Tokens equal to the k-th largest logit all survive top-k, as in vLLM. In top-p equal probabilities rank by
lower id.

A row's token depends on that row alone: every operation here works row by row, whatever else is in the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from semipd.core.sampling import SamplingParams
from semipd.sampling.nucleus import nucleus
from semipd.sampling.philox import seed_words, uniforms

INVALID_TOKEN = -1
_DRAWS_AHEAD = 32
_TINY = torch.finfo(torch.float32).tiny


class SamplingRow(NamedTuple):
    """What sampling needs of one sequence. `token_ids` is prompt and output; the next token is sampled."""

    params: SamplingParams
    token_ids: Sequence[int]
    num_prompt_tokens: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


class SamplingBatch:
    """Parameters of a fixed set of rows as tensors; built when membership changes, advanced every step."""

    def __init__(self, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> None:
        self._bias = _Bias.of(rows, device)
        self._allowed = _Allowed.of(rows, vocab_size, device)
        self._min_tokens = _MinTokens.of(rows, device)
        self._penalties = _Penalties.of(rows, vocab_size, device)
        self._draws = _Draws.of(rows, vocab_size, device)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Next token of each row, int64 [rows], from raw logits, fp32 [rows, vocab] (left unchanged).

        A row without a finite largest logit yields INVALID_TOKEN, for the caller to refuse once the tokens
        have left the device. Changes nothing: `advance` moves on.
        """
        adjusted = self._adjust(logits)
        best, tokens = adjusted.max(dim=-1)
        if self._draws is not None:
            tokens = self._draws.replace(tokens, adjusted, best)
        return torch.where(best.isfinite(), tokens, INVALID_TOKEN)

    def advance(self, tokens: torch.Tensor) -> None:
        """Append `tokens`, int64 [rows], to the histories. Equal to building the batch anew."""
        if self._min_tokens is not None and not self._min_tokens.advance():
            self._min_tokens = None
        if self._penalties is not None:
            self._penalties.advance(tokens)
        if self._draws is not None:
            self._draws.advance()

    def _adjust(self, logits: torch.Tensor) -> torch.Tensor:
        candidates = (self._bias, self._allowed, self._min_tokens, self._penalties)
        adjustments = [a for a in candidates if a is not None]
        if adjustments:
            logits = logits.clone()
        for adjustment in adjustments:
            adjustment.apply(logits)
        return logits


def _index(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _floats(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


class _Bias:
    def __init__(self, entries: list[tuple[int, int, float]], device: torch.device) -> None:
        rows, tokens, values = zip(*entries, strict=True)
        self._where = (_index(rows, device), _index(tokens, device))
        self._values = _floats(values, device)

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], device: torch.device) -> "_Bias | None":
        entries = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.params.logit_bias]
        return cls(entries, device) if entries else None

    def apply(self, logits: torch.Tensor) -> None:
        logits.index_put_(self._where, self._values, accumulate=True)


class _Allowed:
    """Masks over the whole vocabulary, kept only for the rows that may not choose from all of it."""

    def __init__(
        self, allowed: list[tuple[int, ...]], indices: list[int], vocab_size: int, device: torch.device
    ) -> None:
        self._rows = _index(indices, device)
        self._masks = torch.full((len(allowed), vocab_size), float("-inf"), device=device)
        for mask, token_ids in zip(self._masks, allowed, strict=True):
            mask[_index(token_ids, device)] = 0.0

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> "_Allowed | None":
        indices = [i for i, row in enumerate(rows) if row.params.allowed_token_ids]
        allowed = [rows[i].params.allowed_token_ids for i in indices]
        return cls(allowed, indices, vocab_size, device) if indices else None

    def apply(self, logits: torch.Tensor) -> None:
        logits.index_add_(0, self._rows, self._masks)


class _MinTokens:
    """Stop tokens are impossible until a row has `min_tokens` output tokens."""

    def __init__(self, entries: list[tuple[int, int, int]], device: torch.device) -> None:
        rows, tokens, missing = zip(*entries, strict=True)
        self._where = (_index(rows, device), _index(tokens, device))
        self._missing = _index(missing, device)
        self._steps_left: int = max(missing)

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], device: torch.device) -> "_MinTokens | None":
        entries = [
            (i, token, row.params.min_tokens - row.num_output_tokens)
            for i, row in enumerate(rows)
            if row.params.min_tokens > row.num_output_tokens
            for token in row.params.stop_token_ids
        ]
        return cls(entries, device) if entries else None

    def apply(self, logits: torch.Tensor) -> None:
        masks = torch.zeros(len(self._missing), dtype=logits.dtype, device=logits.device)
        masks.masked_fill_(self._missing > 0, float("-inf"))
        logits.index_put_(self._where, masks, accumulate=True)

    def advance(self) -> bool:
        """False when no row needs a mask any more."""
        self._missing -= 1
        self._steps_left -= 1
        return self._steps_left > 0


class _Penalties:
    """Counts over the whole vocabulary, kept only for the rows that have a penalty."""

    def __init__(
        self, rows: list[SamplingRow], indices: list[int], vocab_size: int, device: torch.device
    ) -> None:
        self._rows = _index(indices, device)
        self._local = torch.arange(len(rows), device=device)
        self._repetition = _floats([row.params.repetition_penalty for row in rows], device)[:, None]
        self._frequency = _floats([row.params.frequency_penalty for row in rows], device)[:, None]
        self._presence = _floats([row.params.presence_penalty for row in rows], device)[:, None]
        self._uses_repetition = bool((self._repetition != 1).any())
        self._uses_counts = bool((self._frequency != 0).any() | (self._presence != 0).any())
        self._output_counts = torch.zeros(len(rows), vocab_size, dtype=torch.float32, device=device)
        self._seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
        for i, row in enumerate(rows):
            history = _index(row.token_ids, device)
            output = history[row.num_prompt_tokens :]
            self._seen[i].index_fill_(0, history, True)
            self._output_counts[i].index_add_(0, output, torch.ones(len(output), device=device))

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> "_Penalties | None":
        indices = [i for i, row in enumerate(rows) if _has_penalty(row.params)]
        return cls([rows[i] for i in indices], indices, vocab_size, device) if indices else None

    def apply(self, logits: torch.Tensor) -> None:
        picked = logits[self._rows]
        if self._uses_repetition:
            factors = torch.where(picked > 0, 1.0 / self._repetition, self._repetition)
            picked.mul_(factors.masked_fill_(~self._seen, 1.0))
        if self._uses_counts:
            picked.addcmul_(self._output_counts, self._frequency, value=-1)
            picked.addcmul_(self._output_counts.clamp_max(1.0), self._presence, value=-1)
        logits.index_copy_(0, self._rows, picked)

    def advance(self, tokens: torch.Tensor) -> None:
        where = (self._local, tokens[self._rows])
        self._output_counts[where] += 1
        self._seen[where] = True


def _has_penalty(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    )


class _Draws:
    """The rows with a temperature: from logits to a drawn token."""

    def __init__(
        self, rows: list[SamplingRow], indices: list[int], vocab_size: int, device: torch.device
    ) -> None:
        params = [row.params for row in rows]
        self._rows = _index(indices, device)
        self._temperature = _floats([p.temperature for p in params], device).clamp_min(_TINY)[:, None]
        self._top_k = _TopK.of(params, vocab_size, device)
        top_p_rows = [i for i, p in enumerate(params) if p.top_p < 1.0]
        self._top_p_rows = _index(top_p_rows, device) if top_p_rows else None
        self._top_p = _floats([params[i].top_p for i in top_p_rows], device)
        min_p = any(p.min_p > 0 for p in params)
        self._min_p = _floats([p.min_p for p in params], device)[:, None] if min_p else None
        self._key = tuple(word[:, None] for word in seed_words([p.seed for p in params], device))
        self._positions = _index([len(row.token_ids) for row in rows], device)
        self._column = _DRAWS_AHEAD

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> "_Draws | None":
        indices = [i for i, row in enumerate(rows) if not row.params.greedy]
        return cls([rows[i] for i in indices], indices, vocab_size, device) if indices else None

    def advance(self) -> None:
        self._column += 1
        self._positions += 1

    def replace(self, greedy: torch.Tensor, logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """`greedy` with the tokens of our rows drawn from `logits`, whose largest are `best`."""
        if len(self._rows) == len(greedy):
            return self._draw(logits, best)
        return greedy.index_copy(0, self._rows, self._draw(logits[self._rows], best[self._rows]))

    def _draw(self, logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        # Relative to the largest logit, so that a tiny temperature cannot overflow. In place from here on:
        # at these sizes a fresh result costs more than the arithmetic.
        scaled = (logits - best[:, None]).div_(self._temperature)
        if self._top_k is not None:
            self._top_k.apply(scaled)
        weights = scaled.exp_()
        if self._top_p_rows is not None:
            self._apply_top_p(weights)
        if self._min_p is not None:
            # The largest weight is 1.
            weights.mul_(weights >= self._min_p)
        cdf = weights.cumsum_(dim=-1)
        threshold = self._uniforms() * cdf[:, -1:]
        # First token whose CDF exceeds the threshold: never one of weight zero. NaN rows have none.
        token = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
        return token.clamp_max_(cdf.shape[1] - 1)

    def _apply_top_p(self, weights: torch.Tensor) -> None:
        assert self._top_p_rows is not None
        if len(self._top_p_rows) == len(weights):
            weights.mul_(nucleus(weights, self._top_p))
        else:
            picked = weights[self._top_p_rows]
            weights.index_copy_(0, self._top_p_rows, picked.mul_(nucleus(picked, self._top_p)))

    def _uniforms(self) -> torch.Tensor:
        """fp32 [rows, 1] for the current positions, computed for many steps at a time."""
        if self._column >= _DRAWS_AHEAD:
            ahead = torch.arange(_DRAWS_AHEAD, device=self._positions.device)
            self._ahead = uniforms((self._key[0], self._key[1]), self._positions[:, None] + ahead)
            self._column = 0
        return self._ahead[:, self._column, None]


class _TopK:
    def __init__(self, limits: list[int], device: torch.device) -> None:
        self._largest = max(limits)
        self._kth = _index([max(k, 1) - 1 for k in limits], device)[:, None]
        self._off = torch.tensor([k == 0 for k in limits], device=device)[:, None]

    @classmethod
    def of(cls, params: list[SamplingParams], vocab_size: int, device: torch.device) -> "_TopK | None":
        limits = [p.top_k if p.top_k < vocab_size else 0 for p in params]
        return cls(limits, device) if any(limits) else None

    def apply(self, logits: torch.Tensor) -> None:
        """Below the k-th largest: impossible. Finding that one value needs no full sort."""
        thresholds = logits.topk(self._largest, dim=-1).values.gather(1, self._kth)
        thresholds.masked_fill_(self._off, float("-inf"))
        logits.masked_fill_(logits < thresholds, float("-inf"))
