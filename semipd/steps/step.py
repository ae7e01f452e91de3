"""One step as tensors: decode rows first, then prefill chunks, laid end to end."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from semipd.core.plan import BLOCK_SIZE, Segment, blocks_for
from semipd.core.request import SeqId
from semipd.network.batch import BatchInput
from semipd.steps.failures import unsound_sequences
from semipd.steps.resident import DecodeBatch, Resident, pad_block_tables


class Chunk(NamedTuple):
    """A segment with its resident."""

    segment: Segment
    resident: Resident

    @property
    def end(self) -> int:
        return self.segment.start + self.segment.length

    def predicted_prompt(self) -> range:
        """Indices of the prompt tokens whose log-probabilities this chunk owes."""
        if self.segment.prompt_logprobs is None:
            return range(0)
        return range(self.segment.start + 1, min(self.end, self.resident.num_prompt_tokens - 1) + 1)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, positions and KV slots of the chunk's rows, int64 [length] each."""
        start, end = self.segment.start, self.end
        positions = torch.arange(start, end, device=device)
        first_block = start // BLOCK_SIZE
        blocks = torch.tensor(self.resident.block_table[first_block : blocks_for(end)], device=device)
        slots = blocks[positions // BLOCK_SIZE - first_block] * BLOCK_SIZE + positions % BLOCK_SIZE
        return torch.tensor(self.resident.token_ids[start:end], device=device), positions, slots


class Step(NamedTuple):
    """What one forward pass is made of; at least one row in all."""

    decode: DecodeBatch | None
    chunks: list[Chunk]

    @property
    def num_decode(self) -> int:
        return len(self.decode.residents) if self.decode else 0

    def sampling_chunks(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.segment.sample]

    def sampled(self) -> list[Resident]:
        """Who gets a token, in the order of `StepResult.tokens`."""
        decoding = self.decode.residents if self.decode else []
        return [*decoding, *(chunk.resident for chunk in self.sampling_chunks())]

    def batch_input(self, device: torch.device) -> BatchInput:
        """Logits are asked for in the order: decode rows, chunks that sample, predicted prompt tokens."""
        if self.decode is not None and not self.chunks:
            return _decode_only(self.decode, device)
        parts = [chunk.tensors(device) for chunk in self.chunks]
        query_lens = [chunk.segment.length for chunk in self.chunks]
        kv_lens = [chunk.end for chunk in self.chunks]
        if self.decode is not None:
            parts.insert(0, (self.decode.token_ids, self.decode.positions, self.decode.slots()))
            query_lens = [1] * self.num_decode + query_lens
            kv_lens = self.decode.kv_lens + kv_lens
        token_ids, positions, slots = (torch.cat(column) for column in zip(*parts, strict=True))
        tables = self._block_tables(blocks_for(max(kv_lens)), device)
        logit_rows = torch.tensor(list(self._logit_rows()), dtype=torch.int64, device=device)
        unsound = torch.zeros(len(token_ids), dtype=torch.bool, device=device)
        return BatchInput(token_ids, positions, slots, query_lens, kv_lens, tables, logit_rows, unsound)

    def unsound(self, rows: torch.Tensor | None) -> list[SeqId]:
        """Sequences with a row that BatchInput.unsound marks. A decode row shows it in its logits."""
        segments = [chunk.segment for chunk in self.chunks]
        return [] if rows is None else unsound_sequences(segments, rows[self.num_decode :])

    def _block_tables(self, width: int, device: torch.device) -> torch.Tensor:
        tables = pad_block_tables([chunk.resident.block_table for chunk in self.chunks], width, device)
        if self.decode is None:
            return tables
        decoding = self.decode.block_tables()
        return torch.cat([torch.nn.functional.pad(decoding, (0, width - decoding.shape[1])), tables])

    def _logit_rows(self) -> Iterator[int]:
        yield from range(self.num_decode)
        first_rows, row = [], self.num_decode
        for chunk in self.chunks:
            first_rows.append(row)
            row += chunk.segment.length
            if chunk.segment.sample:
                yield row - 1
        for chunk, first in zip(self.chunks, first_rows, strict=True):
            # The logits of token i - 1 predict token i.
            yield from (first + index - 1 - chunk.segment.start for index in chunk.predicted_prompt())


def _decode_only(decode: DecodeBatch, device: torch.device) -> BatchInput:
    rows = len(decode.residents)
    return BatchInput(
        decode.token_ids,
        decode.positions,
        decode.slots(),
        [1] * rows,
        decode.kv_lens,
        decode.block_tables(),
        torch.arange(rows, device=device),
    )
