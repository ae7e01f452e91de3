"""Where the rows of one step come from: everything about it that the host knows, packed for one upload."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semipd.devices.cuda.rows.padded import PaddedRows
from semipd.devices.cuda.rows.slots import SlotState
from semipd.devices.cuda.rows.staging import Packer
from semipd.network.rows import ChunkPlan, ChunkRows, DecodeRows, StepRows
from semipd.sampling.parameters import Column
from semipd.sampling.stages import StagePlan, Stages
from semipd.steps.residents import Chunk, Resident
from semipd.steps.rows import chunk_vectors, prompt_targets, sampled_residents, wanted_rows

PlanChunks = Callable[[list[int], list[int]], ChunkPlan]
"""(lengths, context lengths) of the chunks."""


class StepLayout:
    """Of a step that decodes `decoding` and computes `chunks`.

    Attributes:
        sampled: who gets a token, in the order of StepResult.tokens.
        num_prompt_rows: rows that predict prompt tokens.
        padded_size: of the captured pass that its rows are loaded for; None: they have a place of their own.
        packer: all vectors, for one copy to the device.
    """

    def __init__(
        self,
        decoding: list[Resident],
        chunks: list[Chunk],
        vocab_size: int,
        plan_chunks: PlanChunks,
        padded: PaddedRows | None = None,
    ) -> None:
        self.decoding = decoding
        self.chunks = chunks
        self.sampled = sampled_residents(decoding, chunks)
        self.packer = packer = Packer()
        self._decode_slots = packer.add([r.slot for r in decoding])
        self._sampled_slots = packer.add([r.slot for r in self.sampled])
        facts = [(r.params, r.num_prompt_tokens, r.num_tokens) for r in self.sampled]
        self._stages = StagePlan(facts, vocab_size)
        self._stage_vectors = {name: packer.add(vector) for name, vector in self._stages.vectors.items()}
        targets = prompt_targets(chunks)
        self.num_prompt_rows = len(targets)
        self._prompt_targets = packer.add(targets)
        self._padded = padded
        self.padded_size = padded.size_for(chunks) if padded is not None and not decoding else None
        if chunks:
            self._wanted = packer.add(wanted_rows(len(decoding), chunks))
        if padded is not None and self.padded_size is not None:
            self._rows_vector = packer.add(padded.packed(self.padded_size, chunks)[0])
        elif chunks:
            self._pack_chunks(packer, chunks)
            self._plan = plan_chunks([c.segment.length for c in chunks], [c.end for c in chunks])
            self._work = packer.add(self._plan.work)

    @property
    def is_unfiltered(self) -> bool:
        """Whether its rows are sampled as a captured decode pass samples: see Sampler.sample_unfiltered."""
        return self._stages.is_unfiltered

    @property
    def num_rows(self) -> int:
        return len(self.decoding) + sum(chunk.segment.length for chunk in self.chunks)

    def bind(
        self,
        memory: Tensor,
        state: SlotState,
        context: Tensor | None = None,
        workspace: tuple[Tensor, ...] = (),
    ) -> "BoundLayout":
        """`memory`: int32, where the packer's vectors have gone. `context`: see ChunkRows; `workspace`: see
        DecodeRows. Launches on the current stream."""
        view = self.packer.views(memory)
        sampled_slots = view(self._sampled_slots).long()
        stages = self._stages.bind({name: view(number) for name, number in self._stage_vectors.items()})
        targets = view(self._prompt_targets)
        if not self.chunks:
            return BoundLayout(view(self._decode_slots), sampled_slots, stages, targets, None, None)
        if self.padded_size is not None:
            rows = self._load(view, state)
        else:
            rows = self._rows(view, state, context, workspace)
        return BoundLayout(view(self._decode_slots), sampled_slots, stages, targets, rows, view(self._wanted))

    def _load(self, view: Callable[[int], Tensor], state: SlotState) -> StepRows:
        assert self._padded is not None
        assert self.padded_size is not None
        self._padded.load(view(self._rows_vector), self.padded_size, state)
        return self._padded.rows(self.padded_size, self.num_rows)

    def _pack_chunks(self, packer: Packer, chunks: Sequence[Chunk]) -> None:
        vectors = chunk_vectors(chunks)
        lengths = [c.segment.length for c in chunks]
        self._tokens = packer.add(vectors.token_ids)
        self._positions = packer.add(vectors.positions)
        self._kv_slots = packer.add(vectors.slots)
        self._chunk_slots = packer.add([c.resident.slot for c in chunks])
        self._query_starts = packer.add(np.cumsum([0, *lengths]))
        self._kv_lens = packer.add([c.end for c in chunks])

    def _rows(
        self,
        view: Callable[[int], Tensor],
        state: SlotState,
        context: Tensor | None,
        workspace: tuple[Tensor, ...],
    ) -> StepRows:
        tables = state.tables.index_select(0, view(self._chunk_slots))
        chunks = ChunkRows(
            tables,
            view(self._query_starts),
            view(self._kv_lens),
            view(self._work),
            self._plan,
            [chunk.segment.length for chunk in self.chunks],
            [chunk.end for chunk in self.chunks],
            context,
        )
        tokens, positions = view(self._tokens), view(self._positions)
        slots = view(self._kv_slots).long()
        if not self.decoding:
            return StepRows(tokens, positions, slots, None, chunks)
        decode = decode_rows(state, view(self._decode_slots), workspace)
        return StepRows(
            torch.cat((decode.token_ids, tokens)),
            torch.cat((decode.positions, positions)),
            torch.cat((decode.slots, slots)),
            decode.decode,
            chunks,
        )

    def kv_reads(self, decode_lens: Sequence[int]) -> set[int]:
        """Blocks whose keys and values a step attends to, given the contexts of its decodes."""
        blocks = set[int]()
        for resident, kv_len in zip(self.decoding, decode_lens, strict=True):
            blocks.update(resident.blocks_of(kv_len))
        for chunk in self.chunks:
            blocks.update(chunk.context_blocks)
        return blocks

    def kv_writes(self, decode_lens: Sequence[int]) -> set[int]:
        pairs = zip(self.decoding, decode_lens, strict=True)
        blocks = {resident.blocks_of(kv_len)[-1] for resident, kv_len in pairs}
        for chunk in self.chunks:
            first = chunk.segment.start // chunk.resident.block_size
            blocks.update(chunk.context_blocks[first:])
        return blocks


@dataclass(frozen=True, slots=True)
class BoundLayout:
    """A layout on the device.

    Attributes:
        decode_slots: int32 [D]; sampled_slots: int64 [R].
        prompt_targets: int32 [P], the tokens that the prompt rows predict.
        rows, wanted: of a step with chunks; else None, and the rows come from the slots.
    """

    decode_slots: Tensor
    sampled_slots: Tensor
    stages: Stages
    prompt_targets: Tensor
    rows: StepRows | None
    wanted: Tensor | None


def decode_rows(state: SlotState, slots: Tensor, workspace: tuple[Tensor, ...] = ()) -> StepRows:
    """One row for each of `slots`, int32 [D]: the newest token of its sequence."""
    columns = state.columns.index_select(1, slots)
    tables = state.tables.index_select(0, slots)
    positions = columns[Column.POSITION]
    block_size = state.block_size
    blocks = tables.gather(1, (positions // block_size).long()[:, None]).squeeze(1)
    kv_slots = blocks.long() * block_size + positions % block_size
    decode = DecodeRows(tables, positions + 1, workspace)
    return StepRows(columns[Column.TOKEN], positions, kv_slots, decode, None)
