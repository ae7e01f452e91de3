"""One step of a lane, from its plan to its result."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from semipd.core.plan import StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import Event, Stream
from semipd.devices.cuda.rows.staging import Staging
from semipd.devices.cuda.sampler.logprobs import LogprobBuffers
from semipd.steps.failures import failed_sequences, unsound_sequences, without_failed
from semipd.steps.residents import Chunk, Resident
from semipd.steps.rows import by_sequence, num_prompt_top, prompt_targets


class Place(NamedTuple):
    """Where a piece of work goes."""

    split: Split
    stream: Stream
    num_sms: int


Piece = Callable[[Place], None]
"""Launches a part of a step: the whole of a decode step, a group of layers of a prefill."""


class Mark(NamedTuple):
    """An event after a piece of work, and the units it was launched under."""

    event: Event
    units: int


@dataclass(slots=True)
class LaneStep:
    """Attributes:
    pieces: not launched yet.
    marks: of launched pieces that are not known to be done, oldest first.
    started, finished: timed events around all of it.
    is_mixed: a piece was launched under another split than the plan's.
    buffers: staging that the device uses until the step has settled.
    tokens: pinned, one per `sampled`. sums: pinned, float32, one per row of the chunks: not finite where the
        row's attention is not.
    """

    plan: StepPlan
    sampled: list[Resident]
    chunks: list[Chunk]
    pieces: deque[Piece] = field(default_factory=deque)
    marks: deque[Mark] = field(default_factory=deque)
    started: Event | None = None
    finished: Event | None = None
    begun_at_ns: int = 0
    is_mixed: bool = False
    buffers: list[Tensor] = field(default_factory=list)
    tokens: Tensor | None = None
    sums: Tensor | None = None
    logprobs: LogprobBuffers | None = None
    prompt_logprobs: LogprobBuffers | None = None

    def take(self, staging: Staging, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A staging buffer that stays with the step."""
        buffer = staging.take(max(count, 1), dtype)
        self.buffers.append(buffer)
        return buffer

    def result(self, busy_ns: int) -> StepResult:
        """Once the device is done."""
        assert self.tokens is not None
        tokens: list[int] = self.tokens[: len(self.sampled)].tolist()
        prompt_logprobs = self._prompt_entries()
        seqs = (resident.seq for resident in self.sampled)
        failed = failed_sequences(seqs, tokens, self._unsound(), prompt_logprobs)
        if failed is not None:
            prompt_logprobs = without_failed(prompt_logprobs, failed)
        logprobs = self._entries(tokens, failed or {})
        return StepResult.one_each(
            self.plan.step_id, tokens, busy_ns, logprobs, prompt_logprobs, self.is_mixed, failed
        )

    def _entries(self, tokens: list[int], failed: Mapping[SeqId, str]) -> list[TokenLogprobs | None] | None:
        if self.logprobs is None:
            return None
        num_top = [None if r.seq in failed else r.params.logprobs for r in self.sampled]
        return self.logprobs.entries(tokens, num_top)

    def _unsound(self) -> list[SeqId]:
        """A decode row shows it in its logits."""
        if self.sums is None:
            return []
        segments = [chunk.segment for chunk in self.chunks]
        num_rows = sum(segment.length for segment in segments)
        return unsound_sequences(segments, self.sums[:num_rows].isfinite().logical_not_())

    def _prompt_entries(self) -> dict[SeqId, list[TokenLogprobs]] | None:
        entries = list[TokenLogprobs | None]()
        if self.prompt_logprobs is not None:
            entries = self.prompt_logprobs.entries(prompt_targets(self.chunks), num_prompt_top(self.chunks))
        return by_sequence(self.chunks, (entry for entry in entries if entry is not None))
