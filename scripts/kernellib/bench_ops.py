"""The operations on the shapes of `workloads`, and what torch offers for the same. Imports torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernellib.torch_attention import Run, sdpa, served_sdpa
from kernellib.workloads import BLOCK_SIZE, Workload
from semipd.core.sampling import SamplingParams

EPS = 1e-6
CHECK_LIMIT = 1e-2
"""Of |out - reference| / |reference| in bfloat16."""

CHECK_SEED = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """`run` launches once and returns what it wrote. `baselines` do the same in torch; each may raise when
    torch has no such kernel. `comparable`: they return what `run` returns first, however often either ran."""

    run: Run
    baselines: Mapping[str, Run] = field(default_factory=dict)
    comparable: bool = False


class Inputs:
    """Random tensors, and how to launch.

    Args:
        device: where the tensors are.
        source: where the numbers are drawn: from the CPU, every device gets the same.
        num_sms: of the lane.
        config: of the attention operations; None: what they choose themselves.
        ragged: sequences differ in length.
    """

    def __init__(
        self, device: str, source: str, seed: int, *, num_sms: int, config: Any = None, ragged: bool = False
    ) -> None:
        self.device, self.source, self.ragged = device, source, ragged
        self.num_sms, self.config = num_sms, config
        self._generator = torch.Generator(source).manual_seed(seed)

    def floats(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device=self.source, dtype=torch.float32)
        return values.to(dtype).to(self.device)

    def pool(self, *shape: int) -> Tensor:
        """Like `floats`, without a copy in fp32: pools are large."""
        pool = torch.empty(shape, dtype=torch.bfloat16, device=self.source)
        return pool.normal_(generator=self._generator).to(self.device)

    def order(self, size: int) -> Tensor:
        """A permutation of [0, size), int64."""
        return torch.randperm(size, generator=self._generator, device=self.source).to(self.device)

    def ids(self, size: int, below: int) -> Tensor:
        ids = torch.randint(below, (size,), generator=self._generator, device=self.source)
        return ids.to(self.device)

    def lengths(self, seqs: int, longest: int, least: int = 1) -> list[int]:
        if not self.ragged:
            return [longest] * seqs
        return [max(least, longest - 41 * seq) for seq in range(seqs)]

    def paged(
        self, seqs: int, context: int, kv_heads: int, head_dim: int, block_size: int = BLOCK_SIZE
    ) -> tuple[Tensor, Tensor]:
        """Pool of one layer and block tables: every sequence's blocks lie anywhere; block 0 is nobody's."""
        blocks = -(-context // block_size)
        pool = self.pool(2, 1 + seqs * blocks, kv_heads, block_size, head_dim)
        return pool, (1 + self.order(seqs * blocks)).view(seqs, blocks).int()


def prepare(op: str, shape: Mapping[str, int], inputs: Inputs) -> Prepared:
    return _BUILD[op](inputs, **shape)


def worst_error(workload: Workload, device: str, num_sms: int, config: Any = None) -> float:
    """Largest relative error of anything written on the small shape, `device` against the CPU."""
    shape = workload.checked_shape()
    inputs = Inputs(device, "cpu", CHECK_SEED, num_sms=num_sms, config=config, ragged=True)
    with torch.no_grad():
        outputs = prepare(workload.op, shape, inputs).run()
    expected = _expected(workload.op, tuple(shape.items()))
    return max(relative_error(got, want) for got, want in zip(outputs, expected, strict=True))


@cache
def _expected(op: str, shape: tuple[tuple[str, int], ...]) -> tuple[Tensor, ...]:
    """From the reference, which knows neither SMs nor configurations."""
    with torch.no_grad():
        return prepare(op, dict(shape), Inputs("cpu", "cpu", CHECK_SEED, num_sms=1, ragged=True)).run()


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| over all elements; infinite with any NaN that `want` does not have. Integers: the
    share of elements that differ."""
    got = got.to(want.device)
    if not want.is_floating_point():
        return float((got != want).double().mean())
    got, want = got.double(), want.double()
    if not torch.equal(got.isnan(), want.isnan()):
        return float("inf")
    got, want = got.nan_to_num(), want.nan_to_num()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def _rms_norm(inputs: Inputs, rows: int, width: int) -> Prepared:
    from semipd_kernels.rms_norm import add_rms_norm

    x, residual, weight = inputs.floats(rows, width), inputs.floats(rows, width), inputs.floats(width)
    out = torch.empty_like(x)

    def run() -> tuple[Tensor, ...]:
        return add_rms_norm(x, residual, weight, EPS, out), residual

    def eager() -> tuple[Tensor, ...]:
        residual.add_(x)
        return (functional.rms_norm(residual, (width,), weight, EPS),)

    return Prepared(run, {"torch": eager})


def _silu_mul(inputs: Inputs, rows: int, width: int) -> Prepared:
    from semipd_kernels.silu_mul import silu_mul

    gate_up = inputs.floats(rows, 2 * width)
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    gate, up = gate_up.chunk(2, dim=1)
    return Prepared(lambda: (silu_mul(gate_up, out),), {"torch": lambda: (functional.silu(gate) * up,)})


def _embedding(inputs: Inputs, rows: int, width: int, vocab_size: int) -> Prepared:
    from semipd_kernels.embedding import embedding

    table, ids = inputs.floats(vocab_size, width), inputs.ids(rows, vocab_size)
    out = torch.empty(rows, width, dtype=table.dtype, device=table.device)
    baseline = {"torch": lambda: (functional.embedding(ids, table),)}
    return Prepared(lambda: (embedding(ids, table, out),), baseline)


def _rope_write(inputs: Inputs, rows: int, heads: int, kv_heads: int, head_dim: int) -> Prepared:
    from semipd_kernels.rope_write import rope_write

    qkv = inputs.floats(rows, heads + 2 * kv_heads, head_dim)
    blocks = 1 + -(-rows // BLOCK_SIZE)
    pool = torch.zeros(2, blocks, kv_heads, BLOCK_SIZE, head_dim, dtype=qkv.dtype, device=qkv.device)
    slots = BLOCK_SIZE + inputs.order((blocks - 1) * BLOCK_SIZE)[:rows]
    positions = torch.arange(rows, device=qkv.device)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=qkv.device) / head_dim
    frequencies = 500_000.0**-exponents

    def run() -> tuple[Tensor, ...]:
        rope_write(qkv, positions, frequencies, 1.0, slots, pool)
        return qkv, pool

    return Prepared(run)


def _sampling(inputs: Inputs, rows: int, vocab_size: int) -> Prepared:
    from semipd_kernels.sampling import SamplingWorkspace, sample

    from semipd.sampling.parameters import RowParams, column_values
    from semipd.sampling.stages import StagePlan

    logits = inputs.floats(rows, vocab_size, dtype=torch.float32)
    device = logits.device
    params = [SamplingParams(max_tokens=64, temperature=0.8, top_p=0.95, seed=seed) for seed in range(rows)]
    columns = torch.tensor([column_values(p, [1] * 7) for p in params], dtype=torch.int32, device=device)
    packed = RowParams.of(columns.t().contiguous())
    stages = StagePlan([(p, 7, 7) for p in params], vocab_size).bind({})
    slots = torch.arange(rows, device=device)
    counts = torch.zeros(1, vocab_size, dtype=torch.int32, device=device)
    work = SamplingWorkspace(rows, vocab_size, 1, device)
    out = torch.empty(rows, dtype=torch.int64, device=device)
    return Prepared(lambda: (sample(logits, packed, stages, slots, counts, work, out=out),))


def _decode(
    inputs: Inputs,
    seqs: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = BLOCK_SIZE,
) -> Prepared:
    from semipd_kernels.decode_attention import decode_attention, decode_workspace, most_items

    num_sms = inputs.num_sms
    pool, tables = inputs.paged(seqs, context, kv_heads, head_dim, block_size)
    q = inputs.floats(seqs, heads, head_dim)
    kv_lens = torch.tensor(inputs.lengths(seqs, context), dtype=torch.int32, device=q.device)
    num_items = most_items(seqs, kv_heads, num_sms)
    workspace = decode_workspace(seqs, heads, kv_heads, head_dim, num_items, q.device)
    options = {"num_sms": num_sms, "workspace": workspace, "config": inputs.config}
    out = torch.empty_like(q)

    def run() -> tuple[Tensor, ...]:
        return (decode_attention(q, pool, tables, kv_lens, out=out, **options),)

    return Prepared(run, sdpa(q.view(seqs, 1, heads, head_dim), pool, tables, context), comparable=True)


def _prefill(
    inputs: Inputs,
    seqs: int,
    query_len: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = BLOCK_SIZE,
) -> Prepared:
    from semipd_kernels.prefill_attention import plan_prefill, prefill_attention

    num_sms = inputs.num_sms
    pool, tables = inputs.paged(seqs, context, kv_heads, head_dim, block_size)
    contexts = inputs.lengths(seqs, context, least=query_len)
    rows = [query_len] * seqs
    q = inputs.floats(sum(rows), heads, head_dim)
    out = torch.empty_like(q)
    starts = torch.tensor([query_len * seq for seq in range(seqs + 1)], dtype=torch.int32, device=q.device)
    kv_lens = torch.tensor(contexts, dtype=torch.int32, device=q.device)
    plan = plan_prefill(
        rows,
        contexts,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=q.dtype,
        num_sms=num_sms,
        arch=_arch(q.device),
        config=inputs.config,
    )
    plan = replace(plan, items=plan.items.to(q.device))

    def run() -> tuple[Tensor, ...]:
        return (prefill_attention(q, pool, tables, starts, kv_lens, out, plan, num_sms=num_sms),)

    queries = q.view(seqs, query_len, heads, head_dim)
    baselines = sdpa(queries, pool, tables, context) | {
        "gather_kv, sdpa": served_sdpa(queries, pool, tables, context)
    }
    return Prepared(run, baselines, comparable=True)


def _gather(inputs: Inputs, context: int, kv_heads: int, head_dim: int) -> Prepared:
    from semipd_kernels.gather_kv import gather_kv

    pool, tables = inputs.paged(1, context, kv_heads, head_dim)
    out = pool.new_empty(2, kv_heads, context, head_dim)

    def indexed() -> tuple[Tensor, ...]:
        return (pool[:, tables[0].long()].transpose(1, 2).flatten(2, 3)[:, :, :context],)

    return Prepared(lambda: (gather_kv(pool, tables[0], context, out),), {"torch": indexed}, comparable=True)


def _matmul(inputs: Inputs, m: int, k: int, n: int) -> Prepared:
    a, b = inputs.floats(m, k), inputs.floats(n, k).t()  # weights lie as [out, in]: other kernels of cuBLAS
    out = torch.empty(m, n, dtype=a.dtype, device=a.device)
    return Prepared(lambda: (torch.mm(a, b, out=out),))


def _arch(device: torch.device) -> int:
    if device.type == "cpu":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


_BUILD: dict[str, Callable[..., Prepared]] = {
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "embedding": _embedding,
    "rope_write": _rope_write,
    "sampling": _sampling,
    "decode_attention": _decode,
    "prefill_attention": _prefill,
    "gather_kv": _gather,
    "matmul": _matmul,
}
