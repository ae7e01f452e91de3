"""The decode batch that persists from step to step."""

from collections.abc import Sequence

import torch

from semipd.core.plan import PADDING_BLOCK, blocks_for
from semipd.core.request import SeqId
from semipd.network.rows import DecodeRows, StepRows
from semipd.sampling.batch import SamplingBatch, SamplingRow
from semipd.steps.residents import Resident


def sampling_batch(residents: Sequence[Resident], vocab_size: int, device: torch.device) -> SamplingBatch:
    rows = [SamplingRow(r.params, r.token_ids, r.num_prompt_tokens) for r in residents]
    return SamplingBatch(rows, vocab_size, device)


def pad_block_tables(tables: Sequence[Sequence[int]], width: int, device: torch.device) -> torch.Tensor:
    """int64 [len(tables), width]; columns past a table hold the padding block."""
    padding = (PADDING_BLOCK,) * width
    return torch.tensor(
        [[*table[:width], *padding[: max(0, width - len(table))]] for table in tables],
        dtype=torch.int64,
        device=device,
    ).reshape(len(tables), width)


class DecodeBatch:
    """Tensors of residents that advance together by one token a step, kept while membership is unchanged.

    Attributes:
        token_ids, positions: int64 [rows]: each row's newest token and its index.
        kv_lens: context lengths of this step, newest token included.
    """

    def __init__(self, residents: Sequence[Resident], vocab_size: int, device: torch.device) -> None:
        self.seqs = tuple(resident.seq for resident in residents)
        self.residents = list(residents)
        self.kv_lens = [len(resident.token_ids) for resident in residents]
        self.token_ids = torch.tensor([r.token_ids[-1] for r in residents], dtype=torch.int64, device=device)
        self.positions = torch.tensor(self.kv_lens, dtype=torch.int64, device=device) - 1
        self.sampling = sampling_batch(residents, vocab_size, device)
        self._row_of = {resident.seq: row for row, resident in enumerate(residents)}
        self._num_blocks = [len(resident.block_table) for resident in residents]
        self._block_size = residents[0].block_size
        width = max(self._num_blocks)
        self._tables = pad_block_tables([r.block_table for r in residents], width, device)

    def __contains__(self, seq: SeqId) -> bool:
        return seq in self._row_of

    def rows(self) -> StepRows:
        """Of the newest tokens; tables are just wide enough for the longest context of this step."""
        tables = self._tables[:, : blocks_for(max(self.kv_lens), self._block_size)]
        decode = DecodeRows(tables, self.positions + 1)
        return StepRows(self.token_ids, self.positions, self._slots(), decode, None)

    def _slots(self) -> torch.Tensor:
        """int64 [rows]: where the newest tokens' KV goes."""
        blocks = self._tables.gather(1, (self.positions // self._block_size)[:, None]).squeeze(1)
        return blocks * self._block_size + self.positions % self._block_size

    def add_blocks(self, additions: Sequence[tuple[SeqId, tuple[int, ...]]]) -> None:
        """Follow `Resident.block_table` for the members named."""
        if not additions:
            return
        rows: list[int] = []
        columns: list[int] = []
        blocks: list[int] = []
        for seq, new_blocks in additions:
            row = self._row_of[seq]
            start = self._num_blocks[row]
            self._num_blocks[row] += len(new_blocks)
            rows += [row] * len(new_blocks)
            columns += range(start, self._num_blocks[row])
            blocks += new_blocks
        self._widen(max(self._num_blocks))
        device = self._tables.device
        where = (torch.tensor(rows, device=device), torch.tensor(columns, device=device))
        self._tables[where] = torch.tensor(blocks, dtype=torch.int64, device=device)

    def advance(self, sampled: torch.Tensor) -> None:
        """Take this step's samples, int64 [rows], as the newest tokens."""
        self.token_ids = sampled
        self.positions += 1
        self.kv_lens = [length + 1 for length in self.kv_lens]
        self.sampling.advance(sampled)

    def _widen(self, width: int) -> None:
        missing = width - self._tables.shape[1]
        if missing > 0:
            # Doubling: a long generation widens rarely.
            extra = max(missing, self._tables.shape[1])
            self._tables = torch.nn.functional.pad(self._tables, (0, extra), value=PADDING_BLOCK)
