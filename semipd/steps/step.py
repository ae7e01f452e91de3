"""One step as tensors: decode rows first, then prefill chunks, laid end to end."""

from typing import NamedTuple

import torch

from semipd.core.request import SeqId
from semipd.network.rows import ChunkRows, StepRows
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

    def rows(self, device: torch.device) -> StepRows:
        if self.decode is not None and not self.chunks:
            return self.decode.rows()
        tokens, positions, slots = (torch.from_numpy(v).to(device) for v in chunk_vectors(self.chunks))
        kv_lens = [chunk.end for chunk in self.chunks]
        tables = [chunk.resident.block_table for chunk in self.chunks]
        chunks = ChunkRows.unplanned(
            pad_block_tables(tables, max(len(chunk.context_blocks) for chunk in self.chunks), device),
            [chunk.segment.length for chunk in self.chunks],
            kv_lens,
        )
        if self.decode is None:
            return StepRows(tokens, positions, slots, None, chunks)
        own = self.decode.rows()
        return StepRows(
            torch.cat((own.token_ids, tokens)),
            torch.cat((own.positions, positions)),
            torch.cat((own.slots, slots)),
            own.decode,
            chunks,
        )

    def wanted(self, device: torch.device) -> torch.Tensor | None:
        """int64: decode rows, chunks that sample, predicted prompt tokens. None: all rows, as they are."""
        if not self.chunks:
            return None
        return torch.tensor(wanted_rows(self.num_decode, self.chunks), dtype=torch.int64, device=device)

    def unsound(self, is_unsound: torch.Tensor | None) -> list[SeqId]:
        """Sequences with a row that PassResult.unsound marks. A decode row shows it in its logits."""
        segments = [chunk.segment for chunk in self.chunks]
        return [] if is_unsound is None else unsound_sequences(segments, is_unsound)
