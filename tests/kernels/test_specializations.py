"""Which kernels serving compiles: none beyond those of warm-up, whatever the batch.

Triton compiles a kernel for each alignment of its pointers, and for integers that are 1 or multiples of 16.
So the rows of an operation, and where its vectors begin, must not say anything to it.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from kernellib.noop_triton import NoopDriver, noop_triton
from semipd_kernels.catalog import OPS, aot_cases
from semipd_kernels.decode_attention import decode_attention, decode_workspace
from semipd_kernels.embedding import embedding
from semipd_kernels.gather_kv import gather_kv
from semipd_kernels.prefill_attention import plan_prefill, prefill_attention
from semipd_kernels.rms_norm import add_rms_norm
from semipd_kernels.rope_write import rope_write
from semipd_kernels.sampling import SamplingWorkspace, sample
from semipd_kernels.sampling.unfiltered import sample_unfiltered
from semipd_kernels.silu_mul import silu_mul
from torch import Tensor

from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.lane.warm_up import EVERYTHING
from semipd.sampling.parameters import Column, RowParams, column_values
from semipd.sampling.stages import StagePlan

HEADS, KV_HEADS, DIM, VOCAB, MOST = 8, 2, 64, 9000, 64
POOLS = [torch.zeros(2, blocks, KV_HEADS, 16, DIM, dtype=torch.bfloat16) for blocks in (16, 33)]
CPU = torch.device("cpu")
WORKSPACE = SamplingWorkspace(MOST, VOCAB, MOST, CPU)
COLUMNS = torch.zeros(len(Column), MOST + 1, dtype=torch.int32)
COUNTS = torch.zeros(MOST, VOCAB, dtype=torch.int32)


@pytest.fixture
def noop() -> Iterator[NoopDriver]:
    with noop_triton() as driver:
        yield driver


def columns(count: int) -> Tensor:
    """Vectors as lanes keep them: rows of one matrix, so that one begins where the one before ends."""
    return torch.zeros(len(Column), count, dtype=torch.int32)


def hidden(count: int, width: int = 64) -> Tensor:
    return torch.zeros(count, width, dtype=torch.bfloat16)


def call_rms_norm(count: int) -> None:
    add_rms_norm(hidden(count), hidden(count), hidden(1)[0], 1e-5, hidden(count))


def call_silu_mul(count: int) -> None:
    silu_mul(hidden(count, 128), hidden(count))


def call_embedding(count: int) -> None:
    embedding(columns(count)[Column.POSITION], hidden(7), hidden(count))


def call_rope_write(count: int) -> None:
    qkv = hidden(count, (HEADS + 2 * KV_HEADS) * DIM).view(count, -1, DIM)
    slots = torch.zeros(count + 1, dtype=torch.int64)
    positions = columns(count)[Column.POSITION]
    for vector, pool in zip((slots[:count], slots[1:]), POOLS, strict=True):
        rope_write(qkv, positions, torch.zeros(DIM // 2), 1.0, vector, pool)


def call_decode_attention(count: int) -> None:
    qkv = hidden(count, (HEADS + 2 * KV_HEADS) * DIM).view(count, -1, DIM)
    tables, lens = torch.zeros(count, 3, dtype=torch.int32), columns(count)[Column.POSITION]
    out = hidden(count, HEADS * DIM).view(count, HEADS, DIM)
    workspace = decode_workspace(MOST, HEADS, KV_HEADS, DIM, 4 * MOST, out.device)
    for num_splits in (1, 4):
        decode_attention(
            qkv[:, :HEADS],
            POOLS[count % 2],
            tables,
            lens,
            num_sms=8,
            scale=0.1,
            num_splits=num_splits,
            out=out,
            workspace=workspace,
        )


def call_prefill_attention(count: int) -> None:
    """A prompt of so many tokens behind as many decoding sequences, and one that takes the wide tiles."""
    for length in (count, 512):
        prefill(count, length)


def prefill(num_decoding: int, length: int) -> None:
    lengths, vectors = [length], columns(num_decoding)
    plan = plan_prefill(
        lengths,
        lengths,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype=torch.bfloat16,
        num_sms=8,
    )
    num_rows = num_decoding + length
    qkv = hidden(num_rows, (HEADS + 2 * KV_HEADS) * DIM).view(num_rows, -1, DIM)
    out = hidden(num_rows, HEADS * DIM).view(num_rows, HEADS, DIM)
    starts, lens = torch.zeros(3, dtype=torch.int32)[1:], vectors[Column.POSITION][:1]
    tables, pool = torch.zeros(1, 40, dtype=torch.int32), POOLS[num_decoding % 2]
    q, out = qkv[num_decoding:, :HEADS], out[num_decoding:]
    prefill_attention(q, pool, tables, starts, lens, out, plan, num_sms=8, scale=0.1)


def call_gather_kv(count: int) -> None:
    """A context of so many tokens; tables are rows of one matrix."""
    out = torch.zeros(2, KV_HEADS, 4 * MOST, DIM, dtype=torch.bfloat16)
    for table in torch.zeros(2, 5, dtype=torch.int32):
        gather_kv(POOLS[0], table, count, out)


def sample_all(params: SamplingParams, count: int) -> None:
    plan = StagePlan([(params, 1, 2)] * count, VOCAB)
    vectors = {name: torch.tensor([0, *vector])[1:].int() for name, vector in plan.vectors.items()}
    values = [column_values(params, [1, 2])] * count
    rows = RowParams.of(torch.tensor(values, dtype=torch.int32).t().contiguous())
    slots = torch.arange(count)
    sample(torch.zeros(count, VOCAB), rows, plan.bind(vectors), slots, COUNTS, WORKSPACE)


def call_sampling(count: int) -> None:
    sample_all(EVERYTHING, count)
    ones = torch.ones(3, count, dtype=torch.int32)
    sample_unfiltered(torch.zeros(count, VOCAB), ones[1], COLUMNS, ones[2], WORKSPACE)


CALLS: dict[str, Callable[[int], None]] = {
    "rms_norm": call_rms_norm,
    "rope_write": call_rope_write,
    "silu_mul": call_silu_mul,
    "embedding": call_embedding,
    "sampling": call_sampling,
    "prefill_attention": call_prefill_attention,
    "decode_attention": call_decode_attention,
    "gather_kv": call_gather_kv,
}


def test_every_operation_is_looked_at() -> None:
    assert set(CALLS) == set(OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("warmed_rows", [1, 4])
def test_any_number_of_rows_needs_the_kernels_of_warm_up(op: str, warmed_rows: int, noop: NoopDriver) -> None:
    """Vectors of four rows are aligned however they are laid out, those of one hardly ever."""
    CALLS[op](warmed_rows)
    warmed = list(noop.compiled)
    for count in range(1, MOST + 1):
        CALLS[op](count)
    assert noop.compiled == warmed


def test_no_parameters_need_a_kernel_that_warm_up_does_not(noop: NoopDriver) -> None:
    call_sampling(1)
    warmed = list(noop.compiled)
    for temperature, top_k, top_p, penalty in itertools.product((0.0, 1.0), (0, 9), (1.0, 0.9), (0.0, 0.5)):
        params = SamplingParams(9, 1, temperature, top_k=top_k, top_p=top_p, presence_penalty=penalty)
        sample_all(params, 3)
    assert noop.compiled == warmed


def test_the_report_compiles_what_is_launched() -> None:
    for case in aot_cases():
        settings = case.kernel.kwargs
        unknown = {
            *(settings["do_not_specialize"] or ()),
            *(settings["do_not_specialize_on_alignment"] or ()),
        }
        assert not case.aligned & unknown, (case.name, case.aligned & unknown)
