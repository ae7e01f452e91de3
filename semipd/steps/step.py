"""One step as tensors: decode rows first, then prefill chunks, laid end to end."""

from typing import NamedTuple

import torch

from semipd.core.plan import blocks_for
from semipd.core.request import SeqId
from semipd.network.batch import BatchInput
from semipd.steps.decode_batch import DecodeBatch, pad_block_tables
from semipd.steps.failures import unsound_sequences
from semipd.steps.residents import Chunk, Resident
from semipd.steps.rows import chunk_vectors, sampled_residents, wanted_rows


class Step(NamedTuple):
    """What one forward pass is made of; at least one row in all."""

    decode: DecodeBatch | None
    chunks: list[Chunk]

    @property
    def num_decode(self) -> int:
        return len(self.decode.residents) if self.decode else 0

    def sampled(self) -> list[Resident]:
        return sampled_residents(self.decode.residents if self.decode else [], self.chunks)

    def batch_input(self, device: torch.device) -> BatchInput:
        """Logits are asked for in the order: decode rows, chunks that sample, predicted prompt tokens."""
        if self.decode is not None and not self.chunks:
            return _decode_only(self.decode, device)
        columns = [torch.from_numpy(vector).to(device) for vector in chunk_vectors(self.chunks)]
        query_lens = [chunk.segment.length for chunk in self.chunks]
        kv_lens = [chunk.end for chunk in self.chunks]
        if self.decode is not None:
            decoding = (self.decode.token_ids, self.decode.positions, self.decode.slots())
            columns = [torch.cat(pair) for pair in zip(decoding, columns, strict=True)]
            query_lens = [1] * self.num_decode + query_lens
            kv_lens = self.decode.kv_lens + kv_lens
        token_ids, positions, slots = columns
        tables = self._block_tables(blocks_for(max(kv_lens)), device)
        logit_rows = torch.tensor(wanted_rows(self.num_decode, self.chunks), dtype=torch.int64, device=device)
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
