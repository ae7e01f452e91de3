"""Executes StepPlans: residents, the persistent decode batch, one forward pass, sampling.

Knows nothing of processes or of the kind of device: whatever has a decoder can run plans with it.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from semipd.core.plan import Join, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.network.rows import PassResult, StepRows
from semipd.sampling.logprobs import token_logprobs
from semipd.steps.decode_batch import DecodeBatch, sampling_batch
from semipd.steps.failures import failed_sequences, without_failed
from semipd.steps.residents import Chunk, Resident, Residents
from semipd.steps.rows import by_sequence, num_prompt_top, prompt_targets, sampled_residents
from semipd.steps.step import Step


class Decoder(Protocol):
    @property
    def block_size(self) -> int:
        """Tokens per block of its KV pool."""

    def forward(self, rows: StepRows, wanted: torch.Tensor | None) -> PassResult:
        """Logits of the rows `wanted`, int64 [R], in their order; None: of all. Writes every row's KV."""


class StepRunner:
    """One lane's executor: `execute` and `rebuild` do what StepPlan and Lane describe."""

    def __init__(self, decoder: Decoder, vocab_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._device = device
        self.residents = Residents(decoder.block_size)
        self._decode: DecodeBatch | None = None

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. A sequence that it fails stays resident, without a token more, until a plan says that
        it leaves; meanwhile it may stand in further plans."""
        started_ns = time.monotonic_ns()
        self.residents.apply(plan)
        self._follow(plan)
        chunks = self.residents.chunks(plan)
        step = Step(self._decode_batch(plan.decode), chunks)
        if step.decode is None and not step.chunks:
            return StepResult(plan.step_id, [], time.monotonic_ns() - started_ns)
        logits, unsound = self._decoder.forward(step.rows(self._device), step.wanted(self._device))
        residents, sampled = step.sampled(), self._sample(logits, step)
        tokens: list[int] = sampled.tolist()
        prompt_logprobs = self._prompt_logprobs(logits[len(tokens) :], step.chunks)
        failed = None
        if step.chunks or min(tokens) < 0:
            seqs = (resident.seq for resident in residents)
            failed = failed_sequences(seqs, tokens, step.unsound(unsound), prompt_logprobs)
        if failed:
            prompt_logprobs = without_failed(prompt_logprobs, failed)
            sampled = sampled.clamp_min(0)  # for a batch that may go on without knowing
        logprobs = self._logprobs(logits, sampled, residents, failed)
        _append(residents, tokens, failed)
        if step.decode is not None:
            step.decode.advance(sampled[: step.num_decode])
        busy_ns = time.monotonic_ns() - started_ns
        return StepResult.one_each(plan.step_id, tokens, busy_ns, logprobs, prompt_logprobs, failed=failed)

    def rebuild(self, joins: Sequence[Join]) -> None:
        self._decode = None
        self.residents.rebuild(joins)

    def _follow(self, plan: StepPlan) -> None:
        """What the plan does to the decode batch, which may rest in this step."""
        sampling = [segment.seq for segment in plan.segments if segment.sample]
        if self._decode is not None and any(seq in self._decode for seq in (*plan.leaves, *sampling)):
            self._decode = None
        if self._decode is not None:
            self._decode.add_blocks([entry for entry in plan.new_blocks if entry[0] in self._decode])

    def _decode_batch(self, seqs: tuple[SeqId, ...]) -> DecodeBatch | None:
        if not seqs:
            return None
        if self._decode is None or self._decode.seqs != seqs:
            assert len(set(seqs)) == len(seqs), f"a sequence stands twice in the decode batch {seqs}"
            self._decode = DecodeBatch(self.residents.find(seqs), self._vocab_size, self._device)
        return self._decode

    def _sample(self, logits: torch.Tensor, step: Step) -> torch.Tensor:
        """int64, one token for each of `step.sampled()`."""
        parts = [step.decode.sampling.sample(logits[: step.num_decode])] if step.decode else []
        if residents := sampled_residents([], step.chunks):
            batch = sampling_batch(residents, self._vocab_size, self._device)
            parts.append(batch.sample(logits[step.num_decode : step.num_decode + len(residents)]))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self._device)

    def _logprobs(
        self,
        logits: torch.Tensor,
        sampled: torch.Tensor,
        residents: Sequence[Resident],
        failed: Mapping[SeqId, str] | None,
    ) -> list[TokenLogprobs | None] | None:
        num_top = [None if failed and r.seq in failed else r.params.logprobs for r in residents]
        wanted = [(row, n) for row, n in enumerate(num_top) if n is not None]
        if not wanted:
            return None
        rows = torch.tensor([row for row, _ in wanted], device=self._device)
        entries = token_logprobs(logits[rows], sampled[rows], [n for _, n in wanted])
        aligned: list[TokenLogprobs | None] = [None] * len(num_top)
        for (row, _), entry in zip(wanted, entries, strict=True):
            aligned[row] = entry
        return aligned

    def _prompt_logprobs(
        self, logits: torch.Tensor, chunks: list[Chunk]
    ) -> dict[SeqId, list[TokenLogprobs]] | None:
        """`logits`: the rows that predict prompt tokens, chunk after chunk."""
        if all(chunk.segment.prompt_logprobs is None for chunk in chunks):
            return None
        targets = torch.tensor(prompt_targets(chunks), dtype=torch.int64, device=self._device)
        entries = token_logprobs(logits, targets, num_prompt_top(chunks))
        return by_sequence(chunks, iter(entries))


def _append(residents: Sequence[Resident], tokens: Sequence[int], failed: Mapping[SeqId, str] | None) -> None:
    for resident, token in zip(residents, tokens, strict=True):
        if not failed or resident.seq not in failed:
            resident.token_ids.append(token)
        resident.num_tokens += 1
