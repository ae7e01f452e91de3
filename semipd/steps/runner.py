"""Executes StepPlans: residents, the persistent decode batch, one forward pass, sampling.

Knows nothing of processes or of the kind of device: whatever has a decoder can run plans with it.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from semipd.core.plan import BLOCK_SIZE, Join, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.network.batch import BatchInput
from semipd.sampling.batch import SamplingBatch
from semipd.sampling.logprobs import token_logprobs
from semipd.steps.failures import failed_sequences, without_failed
from semipd.steps.resident import DecodeBatch, Resident
from semipd.steps.step import Chunk, Step


class Decoder(Protocol):
    def forward(self, batch: BatchInput) -> torch.Tensor:
        """Logits, fp32 [len(batch.logit_rows), vocab]; writes the KV of every row, and `batch.unsound`."""


class StepRunner:
    """One lane's executor: `execute` and `rebuild` do what StepPlan and Lane describe."""

    def __init__(self, decoder: Decoder, vocab_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._device = device
        self._residents: dict[SeqId, Resident] = {}
        self._decode: DecodeBatch | None = None

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. A sequence that it fails stays resident, without a token more, until a plan says that
        it leaves; meanwhile it may stand in further plans."""
        started_ns = time.monotonic_ns()
        self._apply_changes(plan)
        step = Step(
            self._decode_batch(plan.decode), [self._chunk(segment, plan) for segment in plan.segments]
        )
        if step.decode is None and not step.chunks:
            return StepResult(plan.step_id, [], time.monotonic_ns() - started_ns)
        batch = step.batch_input(self._device)
        logits = self._decoder.forward(batch)
        sampled = self._sample(logits, step)
        tokens: list[int] = sampled.tolist()
        prompt_logprobs = self._prompt_logprobs(logits[len(tokens) :], step.chunks)
        failed = None
        if step.chunks or min(tokens) < 0:
            seqs = (resident.seq for resident in step.sampled())
            failed = failed_sequences(seqs, tokens, step.unsound(batch.unsound), prompt_logprobs)
        if failed:
            prompt_logprobs = without_failed(prompt_logprobs, failed)
            sampled = sampled.clamp_min(0)  # for a batch that may go on without knowing
        logprobs = self._logprobs(logits, sampled, step, failed)
        self._append(step, sampled, tokens, failed)
        busy_ns = time.monotonic_ns() - started_ns
        return StepResult.one_each(plan.step_id, tokens, busy_ns, logprobs, prompt_logprobs, failed=failed)

    def rebuild(self, residents: Sequence[Join]) -> None:
        self._decode = None
        self._residents = {join.seq: Resident.of(join) for join in residents}

    def residents(self) -> list[Join]:
        """The state that `rebuild` would take; it shares nothing with the runner."""
        return [resident.to_join() for resident in self._residents.values()]

    def _apply_changes(self, plan: StepPlan) -> None:
        for seq in plan.leaves:
            assert seq in self._residents, f"step {plan.step_id}: sequence {seq} leaves but is not resident"
            del self._residents[seq]
            self._forget_decode_with(seq)
        for join in plan.joins:
            assert join.seq not in self._residents, f"step {plan.step_id}: sequence {join.seq} joins twice"
            self._residents[join.seq] = Resident.of(join)
        for seq, blocks in plan.new_blocks:
            self._residents[seq].block_table.extend(blocks)
        if self._decode is not None:
            self._decode.add_blocks([entry for entry in plan.new_blocks if entry[0] in self._decode])

    def _forget_decode_with(self, seq: SeqId) -> None:
        if self._decode is not None and seq in self._decode:
            self._decode = None

    def _decode_batch(self, seqs: tuple[SeqId, ...]) -> DecodeBatch | None:
        if not seqs:
            return None
        if self._decode is None or self._decode.seqs != seqs:
            assert len(set(seqs)) == len(seqs), f"a sequence stands twice in the decode batch {seqs}"
            residents = [self._residents[seq] for seq in seqs]
            self._decode = DecodeBatch(residents, self._vocab_size, self._device)
        for resident, kv_len in zip(self._decode.residents, self._decode.kv_lens, strict=True):
            _check_blocks(resident, kv_len)
        return self._decode

    def _chunk(self, segment: Segment, plan: StepPlan) -> Chunk:
        chunk = Chunk(segment, self._residents[segment.seq])
        known = len(chunk.resident.token_ids)
        assert segment.seq not in plan.decode, (
            f"step {plan.step_id}: sequence {segment.seq} prefills and decodes"
        )
        assert segment.start < chunk.end <= known, f"{segment} does not fit {known} tokens"
        assert chunk.end == known or not segment.sample, (
            f"{segment} samples before the newest of {known} tokens"
        )
        _check_blocks(chunk.resident, chunk.end)
        if segment.sample:
            # It moves on behind the back of a decode batch that rests in this step.
            self._forget_decode_with(segment.seq)
        return chunk

    def _sample(self, logits: torch.Tensor, step: Step) -> torch.Tensor:
        """int64, one token for each of `step.sampled()`."""
        parts = [step.decode.sampling.sample(logits[: step.num_decode])] if step.decode else []
        rows = [chunk.resident.sampling_row() for chunk in step.sampling_chunks()]
        if rows:
            batch = SamplingBatch(rows, self._vocab_size, self._device)
            parts.append(batch.sample(logits[step.num_decode : step.num_decode + len(rows)]))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self._device)

    def _append(
        self, step: Step, sampled: torch.Tensor, tokens: list[int], failed: Mapping[SeqId, str] | None
    ) -> None:
        for resident, token in zip(step.sampled(), tokens, strict=True):
            if not failed or resident.seq not in failed:
                resident.token_ids.append(token)
        if step.decode is not None:
            step.decode.advance(sampled[: step.num_decode])

    def _logprobs(
        self, logits: torch.Tensor, sampled: torch.Tensor, step: Step, failed: Mapping[SeqId, str] | None
    ) -> list[TokenLogprobs | None] | None:
        num_top = [resident.params.logprobs for resident in step.sampled()]
        if failed:
            num_top = [None if r.seq in failed else r.params.logprobs for r in step.sampled()]
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
        entries: dict[SeqId, list[TokenLogprobs]] = {}
        for chunk in chunks:
            num_top = chunk.segment.prompt_logprobs
            if num_top is None:
                continue
            targets = [chunk.resident.token_ids[index] for index in chunk.predicted_prompt()]
            tokens = torch.tensor(targets, dtype=torch.int64, device=self._device)
            entries[chunk.segment.seq] = token_logprobs(
                logits[: len(targets)], tokens, [num_top] * len(targets)
            )
            logits = logits[len(targets) :]
        return entries or None


def _check_blocks(resident: Resident, num_tokens: int) -> None:
    room = len(resident.block_table) * BLOCK_SIZE
    assert num_tokens <= room, (
        f"sequence {resident.seq}: {num_tokens} tokens, {room} slots in its block table"
    )
