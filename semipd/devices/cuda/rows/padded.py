"""Rows of a pass over chunks at addresses that a graph can hold on to.

A captured pass has a fixed number of rows and of chunks. What a step does not fill is padding: rows of
token 0 whose KV goes to no slot, and chunks without rows, for which attention has no work.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from semipd.core.settings import PREFILL_GRAPH_FILL
from semipd.devices.cuda.rows.slots import SlotState
from semipd.devices.cuda.rows.staging import Packer
from semipd.network.rows import ChunkPlan, ChunkRows, PassSize, StepRows
from semipd.sampling.parameters import PADDING_SLOT
from semipd.steps.residents import Chunk
from semipd.steps.rows import ChunkVectors, chunk_vectors

NO_KV_SLOT = -1

PlanPadded = Callable[[list[int], list[int], PassSize], ChunkPlan]
"""(lengths, context lengths) of the chunks, and the pass: see Ops.plan_chunks."""

Packed = np.ndarray[tuple[int], np.dtype[np.int32]]
Vector = np.ndarray[tuple[int], np.dtype[np.int64]]
_NOTHING: Vector = np.zeros(0, dtype=np.int64)
_NO_ROWS = ChunkVectors(_NOTHING, _NOTHING, _NOTHING)


class PaddedRows:
    """One lane's. `sizes`: of the captured passes, by rising rows."""

    def __init__(
        self, sizes: Sequence[PassSize], plan: PlanPadded, table_width: int, device: torch.device
    ) -> None:
        self._sizes = sizes
        self._plan = plan
        self._empty = {size: torch.from_numpy(self.packed(size, [])[0]).to(device) for size in sizes}
        self._memory = torch.zeros_like(max(self._empty.values(), key=len))
        most_chunks = max(size.num_chunks for size in sizes)
        self._tables = torch.zeros(most_chunks, table_width, dtype=torch.int32, device=device)
        self._rows: dict[PassSize, StepRows] = {}
        self._slots: dict[PassSize, Tensor] = {}
        for size in sizes:
            self._bind(size)

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (self._memory, self._tables, *self._empty.values()))

    def size_for(self, chunks: Sequence[Chunk]) -> PassSize | None:
        """Of the pass that these chunks fill well enough; None: there is none."""
        num_rows = sum(chunk.segment.length for chunk in chunks)
        for size in self._sizes:
            if num_rows <= size.num_rows:
                fits = len(chunks) <= size.num_chunks and num_rows >= PREFILL_GRAPH_FILL * size.num_rows
                return size if fits else None
        return None

    def packed(self, size: PassSize, chunks: Sequence[Chunk]) -> tuple[Packed, ChunkPlan]:
        """All that a pass of `size` has to know about the chunks, for `load`: of one length for any; and how
        attention cuts them."""
        lengths, contexts = [c.segment.length for c in chunks], [c.end for c in chunks]
        plan = self._plan(lengths, contexts, size)
        packer = Packer()
        for vector in _vectors(size, chunks, lengths, contexts):
            packer.add(vector)
        packer.add(plan.work)
        flat = np.zeros(packer.size, dtype=np.int32)
        packer.write(torch.from_numpy(flat))
        return flat, plan

    def load(self, packed: Tensor, size: PassSize, state: SlotState) -> None:
        """`packed`, int32 on the device, becomes what `rows` of this size hold. Launches on the current
        stream."""
        self._memory[: packed.numel()].copy_(packed)
        torch.index_select(state.tables, 0, self._slots[size], out=self._tables[: size.num_chunks])

    def clear(self, size: PassSize, state: SlotState) -> None:
        """Nothing but padding."""
        self.load(self._empty[size], size, state)

    def rows(self, size: PassSize, num_rows: int | None = None) -> StepRows:
        """What was loaded, at the same addresses every time. `num_rows`: without the padding behind them."""
        rows = self._rows[size]
        if num_rows is None:
            return rows
        tokens, positions, slots = (v[:num_rows] for v in (rows.token_ids, rows.positions, rows.slots))
        return StepRows(tokens, positions, slots, None, rows.chunks)

    def _bind(self, size: PassSize) -> None:
        """Views of the memory, in the order of `packed`."""
        _, plan = self.packed(size, [])
        packer, lengths = Packer(), [len(vector) for vector in _vectors(size, [], [], [])]
        numbers = [packer.add([0] * length) for length in (*lengths, len(plan.work))]
        tokens, positions, kv_slots, starts, kv_lens, slots, work = map(packer.views(self._memory), numbers)
        chunks = ChunkRows(self._tables[: size.num_chunks], starts, kv_lens, work, plan, [], [])
        self._rows[size] = StepRows(tokens, positions, kv_slots, None, chunks)
        self._slots[size] = slots


def _vectors(
    size: PassSize, chunks: Sequence[Chunk], lengths: Sequence[int], contexts: Sequence[int]
) -> list[Vector]:
    """Tokens, positions, KV slots; query starts, contexts and slots of the chunks."""
    rows = chunk_vectors(chunks) if chunks else _NO_ROWS
    starts = [*accumulate(lengths, initial=0)]
    slots = [chunk.resident.slot for chunk in chunks]
    return [
        _filled(rows.token_ids, size.num_rows, 0),
        _filled(rows.positions, size.num_rows, 0),
        _filled(rows.slots, size.num_rows, NO_KV_SLOT),
        _filled(starts, size.num_chunks + 1, starts[-1]),
        _filled(contexts, size.num_chunks, 0),
        _filled(slots, size.num_chunks, PADDING_SLOT),
    ]


def _filled(values: Sequence[int] | Vector, length: int, padding: int) -> Vector:
    vector = np.full(length, padding, dtype=np.int64)
    vector[: len(values)] = values
    return vector
