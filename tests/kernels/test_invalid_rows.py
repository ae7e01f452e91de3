"""NaN of one sequence beside others: what the kernels compute for these has the bits it has without it."""

import math
from dataclasses import replace

import pytest
import torch
from semipd_kernels.decode_attention import DecodeConfig, decode_attention, decode_workspace
from semipd_kernels.prefill_attention import PrefillConfig, plan_prefill, prefill_attention
from support.cuda_rig import TINY, random_weights
from support.kernels import PagedBatch, paged_batch, randn, starts_of
from torch import Tensor

from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.network.activations import Activations
from semipd.network.kv_layout import KvLayout
from semipd.network.network import Network
from semipd.network.rows import ChunkRows, DecodeRows, StepRows

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
"""Of the interpreter's largest score; a GPU has no such worry."""

BAD = 1
"""The sequence between the others."""

BLOCK_SIZE = 16


def poison(batch: PagedBatch) -> None:
    used = -(-int(batch.kv_lens[BAD]) // batch.block_size)
    batch.pool[:, batch.block_tables[BAD, :used].long()] = math.nan


@pytest.mark.parametrize("num_splits", [None, 2])
def test_decode_attention(num_splits: int | None) -> None:
    found = []
    for is_poisoned in (False, True):
        batch = paged_batch([17, 40, 5], kv_heads=1, head_dim=64, dtype=torch.float32, seed=1)
        q = randn((3, 2, 64), torch.float32, seed=2)
        if is_poisoned:
            poison(batch)
        workspace = None if num_splits is None else decode_workspace(3, 2, 1, 64, 3 * num_splits, q.device)
        config = DecodeConfig(tile=32, buffers=2, num_warps=4, ctas_per_sm=2)
        found.append(
            decode_attention(
                q,
                batch.pool,
                batch.block_tables,
                batch.kv_lens,
                num_sms=4,
                num_splits=num_splits,
                workspace=workspace,
                config=config,
            )
        )
    check(found, rows=[0, 2])


def test_prefill_attention() -> None:
    lens, found = [17, 20, 1], []
    for is_poisoned in (False, True):
        batch = paged_batch([17, 40, 20], kv_heads=1, head_dim=64, dtype=torch.float32, seed=3)
        q = randn((38, 2, 64), torch.float32, seed=4)
        if is_poisoned:
            poison(batch)
            q[17:37] = math.nan
        plan = plan_prefill(
            lens,
            batch.kv_lens.tolist(),
            num_heads=2,
            num_kv_heads=1,
            head_dim=64,
            dtype=q.dtype,
            num_sms=3,
            config=PrefillConfig(block_m=16, block_n=32, num_warps=4, num_stages=2, ctas_per_sm=1),
        )
        out = torch.empty_like(q)
        found.append(
            prefill_attention(
                q, batch.pool, batch.block_tables, starts_of(lens), batch.kv_lens, out, plan, num_sms=3
            )
        )
    check(found, rows=[*range(17), 37])


def check(found: list[Tensor], rows: list[int]) -> None:
    """The first without the poison, the second beside it."""
    without, beside = found
    assert torch.equal(beside[rows], without[rows])
    assert without.isfinite().all()
    rest = [row for row in range(len(without)) if row not in rows]
    assert not beside[rest].isfinite().any()


class Pass:
    """Passes of a whole model, interpreted: three prompts, then a token each and two rows of padding. The
    pool starts full of NaN, as blocks of a sequence that has failed may be."""

    def __init__(self, bad_token: int) -> None:
        config = replace(TINY, num_layers=2, head_dim=64, num_heads=2, num_kv_heads=1)
        weights = random_weights(config)
        weights["embed"][60] = math.nan
        self.pool = torch.full(KvLayout.of(config, BLOCK_SIZE).pool_shape(10), math.nan)
        self.ops = KernelOps(torch.float32, 90)
        self.network = Network(config, weights, self.pool, self.ops)
        self.activations = Activations.reserve(config, 64, torch.empty(0))
        self.lens = [5, 20, 18]
        tokens = torch.arange(43, dtype=torch.int32) % 50
        tokens[9] = bad_token
        self.tables = torch.tensor([[1, 0], [2, 3], [4, 5], [0, 0], [0, 0]], dtype=torch.int32)
        self.prompts = tokens.split(self.lens)

    def slots(self, seq: int, positions: Tensor) -> Tensor:
        return self.tables[seq].long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE

    def prefill(self) -> tuple[Tensor, Tensor]:
        """Logits of each prompt's last row; sums of the attention of each row in the last layer."""
        positions = [torch.arange(length) for length in self.lens]
        slots = torch.cat([self.slots(seq, at) for seq, at in enumerate(positions)])
        plan = self.network.plan_chunks(self.lens, self.lens, 3)
        work = torch.from_numpy(plan.work).clone()
        kv_lens = torch.tensor(self.lens, dtype=torch.int32)
        chunks = ChunkRows(self.tables[:3], starts_of(self.lens), kv_lens, work, plan, self.lens, self.lens)
        rows = StepRows(torch.cat(self.prompts), torch.cat(positions).int(), slots, None, chunks)
        return self.run(rows, torch.tensor([4, 24, 42], dtype=torch.int32))

    def decode(self) -> tuple[Tensor, Tensor]:
        at = torch.tensor([*self.lens, 0, 0], dtype=torch.int32)
        slots = torch.stack([self.slots(seq, at[seq].long()) for seq in range(5)])
        decode = DecodeRows(self.tables, at + 1)
        rows = StepRows(torch.tensor([1, 0, 2, 0, 0], dtype=torch.int32), at, slots, decode, None)
        return self.run(rows, None)

    def run(self, rows: StepRows, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        memory = self.activations.first(rows.num_rows)
        self.network.embed(rows, memory)
        self.network.layers(rows, memory, range(self.network.num_layers), 3)
        sums = memory.attended.sum(dim=1)
        final = self.network.finish(memory, wanted)
        logits = torch.empty(len(final), 61)
        self.network.logits(final, logits)
        return logits, sums


def test_a_whole_pass() -> None:
    bad, good = Pass(60), Pass(3)
    (logits, sums), (clean, clean_sums) = bad.prefill(), good.prefill()
    check([clean, logits], rows=[0, 2])
    assert clean_sums.isfinite().all()
    assert sums.isfinite().tolist() == [True] * 5 + [False] * 20 + [True] * 18
    (logits, _), (clean, _) = bad.decode(), good.decode()
    check([clean, logits], rows=[0, 2, 3, 4])
